"""Programs that others wrote: DCMTK sends to the node, Orthanc takes what it sends."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pydicom
import pytest
from nodes import Node, ct_series, free_port, wait_for, write_folder
from pydicom.uid import generate_uid
from test_node import labels_of
from tiny import cascade_model

import trtseg
from training.archive import unpack
from trtseg.node.config import Config
from trtseg.node.receive import start
from trtseg.node.spool import Spool


def program(name):
    """Path of a program of Debian's dcmtk or orthanc."""
    # pynetdicom puts other programs of the same names here, as into any environment.
    own = Path(sys.executable).parent
    folders = [
        path for path in os.get_exec_path() if Path(path) != own and not Path(path, "activate").exists()
    ]
    path = shutil.which(name, path=os.pathsep.join([*folders, "/usr/sbin", "/usr/local/sbin"]))
    if path is None:
        pytest.skip(f"no {name}; apt-get install dcmtk orthanc")
    return path


class Orthanc:
    """An Orthanc with a folder and ports of its own, on this machine only."""

    def __init__(self, folder, **settings):
        self.port, self.http = free_port(), free_port()
        self._config = folder / "orthanc.json"
        self._config.write_text(
            json.dumps(
                {
                    "StorageDirectory": str(folder / "storage"), "IndexDirectory": str(folder / "storage"),
                    "DicomAet": "ORTHANC", "DicomPort": self.port, "HttpPort": self.http, "Plugins": [],
                    "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomAlwaysAllowStore": True,
                    **settings,
                }
            )
        )  # fmt: skip
        self._process = None

    def __enter__(self):
        self._process = subprocess.Popen(
            [program("Orthanc"), str(self._config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait_for(self._is_up, 30)
        return self

    def __exit__(self, *_):
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _is_up(self):
        try:
            return self.get("system")
        except OSError:
            return False

    def get(self, path, data=None):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", data, timeout=10) as answer:
            return answer.read()

    def modalities(self):
        """Of all its series, each with the instances."""
        series = [json.loads(self.get(f"series/{one}")) for one in json.loads(self.get("series"))]
        return {one["MainDicomTags"]["Modality"]: one["Instances"] for one in series}

    def dataset(self, instance):
        return pydicom.dcmread(io.BytesIO(self.get(f"instances/{instance}/file")))


def storescu(port, files, *options):
    called = ["-aet", "CT1", "-aec", "TRTSEG", *options]
    return subprocess.Popen([program("storescu"), *called, "127.0.0.1", str(port), *map(str, files)])


def test_dcmtk_sends_and_orthanc_has_the_results(tmp_path):
    model = str(cascade_model(tmp_path / "model"))
    series = ct_series(8)
    files = sorted(write_folder(series, tmp_path / "ct").iterdir())
    with Orthanc(tmp_path) as orthanc:
        send = [f"ORTHANC@127.0.0.1:{orthanc.port}"]
        with Node(tmp_path / "store", model=model, send=send) as node:
            echo = [program("echoscu"), "-aec", "TRTSEG", "127.0.0.1", str(node.port)]
            assert subprocess.run(echo, check=False).returncode == 0
            assert storescu(node.port, files).wait(60) == 0
            wait_for(lambda: {"SEG", "SR", "OT"} <= orthanc.modalities().keys(), 90)
            found = orthanc.modalities()
            right = trtseg.segment(tmp_path / "ct", model=model, device="cpu", threads=1)
            assert np.array_equal(labels_of(orthanc.dataset(found["SEG"][0]), series), _by_file(right))
            assert len(found["SEG"]) == len(found["SR"]) == 1


@pytest.mark.parametrize(("options", "came"), [((), 4), (("-nh",), 8)])
def test_storescu_goes_on_after_a_dose_report_if_it_is_told_to(tmp_path, options, came):
    series = ct_series(8)
    report = copy.deepcopy(series[0])
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.88.67"
    report.SOPInstanceUID = report.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    files = sorted(write_folder([*series[:4], report, *series[4:]], tmp_path / "ct").iterdir())
    config = Config(tmp_path / "store", port=free_port(), folder=(tmp_path,), free_mb=1)
    spool = Spool(config.store)
    server, _ = start(config, spool)
    try:
        storescu(config.port, files, *options).wait(60)
    finally:
        server.shutdown()
    assert spool.row("SELECT COUNT(*) FROM instance")[0] == came


def _by_file(result):
    """Labels in the order of the file names."""
    source = result.geometry.source
    order = np.argsort([path.name for path in source.files])
    return result.labels.T[np.array(source.index)[order]]


@pytest.mark.slow
def test_orthanc_forwards_by_the_recipe_of_the_docs_and_has_all_once(tmp_path):
    """What Orthanc receives comes back as results, which are not forwarded again."""
    docs = (Path(__file__).parents[2] / "docs/node.md").read_text(encoding="utf-8")
    recipe, script = (
        re.search(rf"\*\*Orthanc\*\*.*?```{kind}\n(.*?)```", docs, re.DOTALL)[1] for kind in ("json", "lua")
    )
    (tmp_path / "trtseg.lua").write_text(script)
    node = Node(
        tmp_path / "store", model=str(cascade_model(tmp_path / "model")), send=["ORTHANC@127.0.0.1:1"]
    )
    settings = json.loads(recipe) | {"LuaScripts": [str(tmp_path / "trtseg.lua")]}
    settings["DicomModalities"]["trtseg"]["Port"] = node.port
    orthanc = Orthanc(tmp_path, **settings)
    node.config.write_text(node.config.read_text().replace("127.0.0.1:1", f"127.0.0.1:{orthanc.port}"))
    series = ct_series(8)
    files = sorted(write_folder(series, tmp_path / "ct").iterdir())
    with orthanc, node:
        assert storescu(orthanc.port, files).wait(60) == 0
        (done,) = wait_for(lambda: node.events("series done"), 60)
        wait_for(lambda: not node.ask("SELECT 1 FROM delivery WHERE state='waiting'"), 30)
        time.sleep(2)  # what would be forwarded again is forwarded by now
        sops = {dataset.SOPInstanceUID for dataset in series}
        assert sorted(node.ask("SELECT sop FROM instance")) == sorted((sop,) for sop in sops)
        results = dict(node.ask("SELECT sop, kind FROM result"))
        assert list(results.values()).count("seg") == list(results.values()).count("sr") == 1
        assert done["results"] == len(results) > 2
        there = [orthanc.dataset(one).SOPInstanceUID for one in json.loads(orthanc.get("instances"))]
        assert sorted(there) == sorted([*sops, *results])
        assert not node.events("instance refused")
        assert not node.events("result rejected")
        # Once more, series and all: nothing happens.
        (ct,) = {
            json.loads(orthanc.get(f"instances/{one}"))["ParentSeries"] for one in orthanc.modalities()["CT"]
        }
        assert json.loads(orthanc.get("modalities/trtseg/store", ct.encode()))["FailedInstancesCount"] == 0
        time.sleep(2)
        assert len(node.events("series done")) == 1
        assert dict(node.ask("SELECT sop, kind FROM result")) == results


@pytest.mark.slow
def test_a_whole_ct_comes_back_from_orthanc_as_it_is_segmented_here(tmp_path, shared_data):
    """129 slices, shuffled, over four associations at once; Orthanc is not there at first."""
    unpack(shared_data / "ircadb01/PATIENT_DICOM.tar.xz", tmp_path / "tar")
    files = sorted(path for path in (tmp_path / "tar").rglob("*") if path.is_file())
    assert len(files) == 129
    folder = tmp_path / "ct"
    folder.mkdir()
    for number, path in enumerate(files):
        path.rename(folder / f"{number:04d}")
    files = sorted(folder.iterdir())
    datasets = [pydicom.dcmread(path) for path in files]
    shuffled = random.Random(0).sample(files, len(files))
    orthanc = Orthanc(tmp_path)
    settings = {"send": [f"ORTHANC@127.0.0.1:{orthanc.port}"], "retry_s": 1.0, "threads": 2, "quiet_s": 1.0}
    with Node(tmp_path / "store", **settings) as node:
        senders = [storescu(node.port, shuffled[part::4]) for part in range(4)]
        assert [sender.wait(300) for sender in senders] == [0] * 4
        wait_for(lambda: node.events("destination not reached"), 300)
        with orthanc:
            wait_for(lambda: node.events("series done"), 300)
            wait_for(lambda: not node.ask("SELECT 1 FROM delivery WHERE state='waiting'"), 300)
            found = orthanc.modalities()
            assert {"SEG", "SR", "OT"} <= found.keys()
            right = trtseg.segment(folder, device="cpu", threads=2)
            assert (right.labels == 2).any()
            assert np.array_equal(labels_of(orthanc.dataset(found["SEG"][0]), datasets), _by_file(right))
