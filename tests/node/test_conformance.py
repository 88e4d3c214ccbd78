"""The conformance statement says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from trtseg.node import receive, status
from trtseg.node.config import Config

TEXT = (Path(__file__).resolve().parents[2] / "docs/conformance.md").read_text(encoding="utf-8")


def rows(heading):
    """Cells of the tables below a heading, by the first column."""
    part = TEXT.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("|")
    ]
    return {row[0]: row[1:] for row in cells}


def test_sop_classes_and_transfer_syntaxes():
    import pynetdicom

    entity = receive.make_entity(Config(Path("/nowhere"), folder=(Path("/nowhere"),)))
    table = rows("Received SOP classes")
    all_syntaxes = {
        row[0]: row[1] for row in table.values() if row[1:] and row[1] in ("uncompressed", "compressed")
    }
    uncompressed = {uid for uid, kind in all_syntaxes.items() if kind == "uncompressed" and ".1.2" in uid}
    syntaxes = {"uncompressed": uncompressed & set(receive.UNCOMPRESSED), "all": None}
    classes = {row[0]: row[1] for name, row in table.items() if "Storage" in name or name == "Verification"}
    syntaxes["all"] = {uid for uid in all_syntaxes if uid not in classes}
    accepted = {
        str(context.abstract_syntax): set(map(str, context.transfer_syntax))
        for context in entity.supported_contexts
    }
    for uid, which in classes.items():
        assert accepted.pop(uid) == syntaxes[which], uid
    others = {str(context.abstract_syntax) for context in pynetdicom.AllStoragePresentationContexts}
    assert set(accepted) <= others
    assert all(kinds == set(receive.UNCOMPRESSED) for kinds in accepted.values())
    assert syntaxes["all"] == {*receive.UNCOMPRESSED, *receive.COMPRESSED}


def test_statuses():
    written = {int(code, 16) for code in rows("Answers to C-STORE") if code.startswith("0x")}
    names = (
        "SUCCESS",
        "CLASS_NOT_SUPPORTED",
        "OUT_OF_RESOURCES",
        "NOT_OF_ITS_CLASS",
        "CANNOT_UNDERSTAND",
        "OTHER_CONTENTS",
        "TOO_LARGE",
    )
    assert written == {getattr(status, name) for name in names}


def test_defaults():
    defaults = Config(Path("/nowhere"), folder=(Path("/nowhere"),))
    found = {name: float(value) for name, value in re.findall(r"`(\w+)`,? \(?(?:default )?(\d+)", TEXT)}
    assert found["long_quiet_s"] == defaults.long_quiet_s
    assert found["quiet_s"] == defaults.quiet_s
    assert found["associations"] == defaults.associations
    assert receive.make_entity(defaults).maximum_pdu_size == 262_138


def test_sent_sop_classes(tmp_path):
    from nodes import ct_series, write_folder
    from pydicom.uid import UID
    from tiny import cascade_model

    import trtseg
    from trtseg.node.results import write_results
    from trtseg.node.spool import Spool

    folder = write_folder(ct_series(4), tmp_path / "ct")
    result = trtseg.segment(folder, model=cascade_model(tmp_path / "model"), device="cpu", threads=1)
    parts = write_results(Spool(tmp_path / "store"), result, ("seg", "sr", "sc"), {}, "2.25.1")
    made = [one for part in parts for one in part]
    written = {(UID(uid), kind) for uid, kind in rows("Sent SOP classes").values() if uid.startswith("1.2")}
    assert {(one.sop_class, one.kind) for one in made} == written
    assert [uid.name for uid, _ in sorted(written)] == [
        name
        for name, _ in sorted(rows("Sent SOP classes").items(), key=lambda row: row[1])
        if name.endswith("Storage")
    ]


def test_one_voxel_of_liver_is_a_result_and_none_is_not(tmp_path):
    import numpy as np
    from nodes import ct_series, write_folder

    import trtseg
    from trtseg.labels.whole import NO_LIVER_ML
    from trtseg.node.results import write_results
    from trtseg.node.spool import Spool
    from trtseg.result import Segmentation

    assert f"less than {NO_LIVER_ML} mL of liver is sent" in TEXT
    volume = trtseg.load(write_folder(ct_series(4), tmp_path / "ct"))
    spool, labels, kinds = Spool(tmp_path / "store"), np.zeros(volume.array.shape, np.uint8), []
    for voxels in (0, 1):
        labels[2, 30, 30] = voxels
        result = Segmentation.measure(labels.copy(), volume, provenance={"model": "test"})
        assert "liver-none" in [warning.code for warning in result.warnings]
        parts = write_results(spool, result, ("seg", "sr"), {}, "2.25.1")
        kinds.append([made.kind for part in parts for made in part])
    assert kinds == [[], ["seg", "sr"]]
