"""How soon results are at an archive when a scanner sends slices, beside the batch way, in one run over the network.

    python -m benchmarks.node FOLDER [--rates 5 20 100 0] [--model default] [--device cpu]

FOLDER has the DICOM files of one CT. They are sent to `trtseg serve` by one association at so many a second; 0 is as
fast as they are taken. The tail is from the last acknowledgment to the arrival of the SEG, and of everything, at an
Orthanc on the same machine (Debian's package). Headers say how many instances there are, so that nothing is waited for.
The batch way has all files on its disk, and then reads, segments, writes and sends them, with a model that is loaded.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import pydicom
from pynetdicom import AE

import trtseg
from training.program import parser_of, plain_errors
from trtseg.errors import InputError
from trtseg.node.line import keep_answers
from trtseg.node.spool import Spool

_KINDS = ("seg", "sr", "sc")


def free_port() -> int:
    """A port that nobody listens to."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Any, seconds: float = 300.0, every: float = 0.01) -> Any:
    """What a condition returns as soon as it is true."""
    until = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(every)
    return value


def start_orthanc(folder: Path, port: int, http: int) -> subprocess.Popen[bytes]:
    """An archive on this machine alone."""
    settings = {
        "StorageDirectory": str(folder / "orthanc"), "IndexDirectory": str(folder / "orthanc"), "Plugins": [],
        "DicomAet": "ORTHANC", "DicomPort": port, "HttpPort": http, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    assert program, "no Orthanc; apt-get install orthanc"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([program, str(folder / "orthanc.json")], **quiet)


def has(http: int, study: str, modality: str = "*") -> Any:
    """Series of a study at Orthanc; empty while it is not up."""
    query = {"Level": "Series", "Query": {"StudyInstanceUID": study, "Modality": modality}}
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{http}/tools/find", json.dumps(query).encode())
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())
    except OSError:
        return None


def as_new(datasets: list[Any]) -> list[Any]:
    """The same CT with other UIDs, and with the number of its instances in each header."""
    study, series = pydicom.uid.generate_uid(), pydicom.uid.generate_uid()
    for one in datasets:
        one.StudyInstanceUID, one.SeriesInstanceUID = study, series
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        one.NumberOfSeriesRelatedInstances = len(datasets)
    return datasets


def send(port: int, datasets: list[Any], rate: float = 0.0, ae: str = "TRTSEG") -> None:
    """Send over one association, so many a second."""
    entity = AE("BENCH")
    for kind in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in datasets}:
        entity.add_requested_context(*kind)
    association = entity.associate("127.0.0.1", port, ae_title=ae)
    assert association.is_established
    keep_answers(association)
    association.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    start = time.perf_counter()
    for number, one in enumerate(datasets):
        if rate:
            time.sleep(max(0.0, start + number / rate - time.perf_counter()))
        assert association.send_c_store(one).Status == 0
    association.release()


def batch(segmenter: trtseg.Segmenter, datasets: list[Any], folder: Path, port: int) -> float:
    """Seconds from files on the disk to results at the archive."""
    for number, one in enumerate(datasets):
        one.save_as(folder / f"{number}.dcm")
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        paths = segmenter.segment(folder).save_dicom(out)
        send(port, [pydicom.dcmread(path) for path in paths], ae="ORTHANC")
    return time.perf_counter() - start


@plain_errors()
def main() -> None:
    """Parse the command line, run both ways, print a row for each rate."""
    parser = parser_of(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rates", type=float, nargs="+", default=[5, 20, 100, 0])
    parser.add_argument("--model", default="default")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    files = sorted(path for path in args.folder.rglob("*") if path.is_file())
    if not files:
        raise InputError(f"{args.folder}: no files in it; expected the DICOM files of one CT")
    datasets = [pydicom.dcmread(path) for path in files]
    dicom, http, port = free_port(), free_port(), free_port()
    print(f"{len(datasets)} instances, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}\n")
    print("| slices a second | tail to SEG, s | tail to all, s | batch, s | times shorter |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "ct").mkdir()
        orthanc = start_orthanc(folder, dicom, http)
        command = [
            sys.executable, "-m", "trtseg", "serve", "--store", folder / "store", "--port", str(port), "--send",
            f"ORTHANC@127.0.0.1:{dicom}", "--model", args.model, "--device", args.device,
        ]  # fmt: skip
        with (folder / "log").open("w") as log:
            node = subprocess.Popen(command, stderr=log)
        try:
            wait_for(lambda: '"ready"' in (folder / "log").read_text() and has(http, "1") is not None)
            spool = Spool(folder / "store")
            tail(spool, as_new(datasets), 0, port, http)  # libraries load what they need at the first result
            tails = {rate: tail(spool, as_new(datasets), rate, port, http) for rate in args.rates}
            node.terminate()  # the batch way has all processors for itself
            node.wait()
            with trtseg.Segmenter(args.model, device=args.device) as segmenter:
                batch(segmenter, as_new(datasets), folder / "ct", dicom)
                for rate, (seg, everything) in tails.items():
                    collected = batch(segmenter, as_new(datasets), folder / "ct", dicom)
                    named = f"{rate:g}" if rate else "as fast as possible"
                    print(
                        f"| {named} | {seg:.2f} | {everything:.2f} | {collected:.2f} | {collected / everything:.1f} |"
                    )
        finally:
            for process in (node, orthanc):
                process.kill()
                process.wait()


def tail(spool: Spool, datasets: list[Any], rate: float, port: int, http: int) -> tuple[float, float]:
    """Seconds from the last acknowledgment to the SEG, and to all results, at the archive.

    The node notes when the archive has answered for each result. Looking there, and seldom, loads the machine less than
    asking the archive all the time.
    """
    (done,) = spool.row("SELECT COUNT(*) FROM series WHERE state='done'")
    (last,) = spool.row("SELECT IFNULL(MAX(id), 0) FROM result")
    send(port, datasets, rate)
    start = time.time()
    wait_for(lambda: spool.row("SELECT COUNT(*) FROM series WHERE state='done'")[0] > done, every=0.1)
    wait_for(lambda: not spool.row("SELECT 1 FROM delivery WHERE state='waiting'"), every=0.1)
    ends = spool.rows(
        "SELECT r.kind, d.ended FROM delivery d JOIN result r ON r.id=d.result WHERE r.id>? AND d.state='sent'",
        last,
    )
    assert len(has(http, datasets[0].StudyInstanceUID)) == 3, "SEG, SR or pictures are missing"
    seg, everything = (
        max(row["ended"] for row in ends if row["kind"] in kinds) for kinds in (["seg"], _KINDS)
    )
    return seg - start, everything - start


if __name__ == "__main__":
    main()
