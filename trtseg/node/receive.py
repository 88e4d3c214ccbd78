"""The service provider: C-ECHO, C-STORE and storage commitment, and a reason beside each status.

Each instance is on the disk before its sender hears so; nothing is decoded here.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import ssl
import threading
import time
from collections import Counter
from io import BytesIO
from typing import TYPE_CHECKING, Any

from trtseg.errors import ArgumentError
from trtseg.io.dicom.frames import CT_CLASSES
from trtseg.node import status
from trtseg.node.again import MOST_BYTES, is_same_image
from trtseg.node.config import Config
from trtseg.node.log import say, where
from trtseg.node.spool import Facts, Refused, Spool
from trtseg.node.stopping import Stop

if TYPE_CHECKING:
    from pydicom import Dataset

    from trtseg.node.guard import Server

VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT = "1.2.840.10008.1.20.1"

# Deflated is left out: it is inflated as a whole before anything of it can be checked.
UNCOMPRESSED = ("1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2")
COMPRESSED = (
    "1.2.840.10008.1.2.4.50",  # JPEG baseline
    "1.2.840.10008.1.2.4.51",  # JPEG extended, 12 bits
    "1.2.840.10008.1.2.4.57",  # JPEG lossless
    "1.2.840.10008.1.2.4.70",  # JPEG lossless, first-order prediction
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless
    "1.2.840.10008.1.2.4.81",  # JPEG-LS near-lossless
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless
    "1.2.840.10008.1.2.4.91",  # JPEG 2000
    "1.2.840.10008.1.2.4.201",  # HTJ2K lossless
    "1.2.840.10008.1.2.4.202",  # HTJ2K lossless RPCL
    "1.2.840.10008.1.2.4.203",  # HTJ2K
    "1.2.840.10008.1.2.5",  # RLE lossless
)

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality", "Rows", "Columns",
    "NumberOfFrames", "NumberOfSeriesRelatedInstances", "AcquisitionNumber", "ImagesInAcquisition",
)  # fmt: skip
_PIXELS = 0x7FE00008  # float, double and integer pixel data, the last elements of a data set
_MOST_REFERENCES = 10_000
_MOST_REFUSALS = 10_000  # of which is noted what was refused; of others, how many


class Receiver:
    """Handlers of the events of a server, and the associations that are open."""

    def __init__(self, config: Config, spool: Spool) -> None:
        self.config = config
        self.spool = spool
        self._open: dict[Any, int] = {}  # pynetdicom's association: its row
        self._refused: Counter[int] = Counter()  # of each row: instances, but those that are no CT
        self._lock = threading.Lock()

    def requested(self, event: Any) -> None:
        """Reject a caller whose AE title may not call from its address, or that calls another node."""
        association = event.assoc
        request = association.requestor.primitive
        ae, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
        address = association.requestor.address_info.address
        if not any(caller.covers(address, ae) for caller in self.config.callers):
            reason, diagnostic = "AE title not allowed", 0x03  # calling AE title not recognised
        elif called != self.config.ae.strip():
            reason, diagnostic = "calls another AE title", 0x07  # called AE title not recognised
        else:
            return
        self._say_refused(association, reason)
        association.acse.send_reject(0x01, 0x01, diagnostic)  # permanent, by the user
        association.kill()

    def rejected(self, event: Any) -> None:
        """Note that pynetdicom rejected a caller."""
        self._say_refused(event.assoc, "too many associations")

    def closed(self, event: Any) -> None:
        """End an association whose peer has closed the connection without a request, to see whether the port is open.

        pynetdicom would wait for the request, and count the association as one of those that it allows at a time.
        """
        if event.assoc.requestor.primitive is None:
            event.assoc.dul.to_user_queue.put(None)

    def _say_refused(self, association: Any, reason: str) -> None:
        request = association.requestor.primitive
        ae, called = request.calling_ae_title.strip(), request.called_ae_title.strip()
        address = association.requestor.address_info.address
        facts = {"calling": ae, "called": called, "address": address, "reason": reason}
        say("association refused", level=logging.WARNING, **facts)
        with contextlib.suppress(Exception):
            self.spool.count("associations_refused")

    def echo(self, event: Any) -> int:
        """Answer a C-ECHO."""
        return status.SUCCESS

    def store(self, event: Any) -> int:
        """Answer a C-STORE when the instance is safe."""
        config, data = self.config, event.request.DataSet
        association, facts = self._row(event.assoc), None
        try:
            if association is None:
                raise Refused(status.OUT_OF_RESOURCES, "the store cannot be written")
            facts = read_facts(event, config)
            with data.getbuffer() as view:
                self._check_space(len(view))
            head = _file_head(event)
            with data.getbuffer() as view:
                self.spool.add(
                    facts, association, (head, view), (config.series_instances, config.open_series)
                )
        except Refused as refusal:
            with contextlib.suppress(Exception):  # then it counts as another
                if (
                    refusal.status == status.OTHER_CONTENTS
                    and facts is not None
                    and self._has_image(event, facts.sop)
                ):
                    return status.SUCCESS
            return self._refuse(refusal.status, str(refusal), association, facts)
        except Exception as error:  # no space, a full disk, a broken one
            return self._refuse(
                status.OUT_OF_RESOURCES, f"cannot be stored: {where(error)}", association, facts
            )
        return status.SUCCESS

    def commit(self, event: Any) -> tuple[int, None]:
        """Take a request for storage commitment, which `trtseg.node.forward` answers on an association of its own."""
        ae = event.assoc.requestor.ae_title.strip()
        if event.action_type != 1:
            return status.NO_SUCH_ACTION, None
        if ae not in self.config.commit_peers:
            reason = "not listed in 'commit'"
            say("storage commitment refused", level=logging.WARNING, calling=ae, reason=reason)
            return status.PROCESSING_FAILURE, None
        try:
            wanted = event.action_information
            references = [
                (str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID))
                for item in wanted.ReferencedSOPSequence[:_MOST_REFERENCES]
            ]
            request = json.dumps({"transaction": str(wanted.TransactionUID), "references": references})
            if not 1 <= len(wanted.ReferencedSOPSequence) <= _MOST_REFERENCES:
                raise ValueError
        except Exception as error:
            reason = f"no request for 1 to {_MOST_REFERENCES} instances: {where(error)}"
            say("storage commitment refused", level=logging.WARNING, calling=ae, reason=reason)
            return status.INVALID_ARGUMENT, None
        try:
            self.spool.do(
                "INSERT INTO commitment(ae, request, due) VALUES(?, ?, ?)", ae, request, time.time()
            )
        except Exception as error:
            say("storage commitment refused", level=logging.WARNING, calling=ae, reason=where(error))
            return status.PROCESSING_FAILURE, None
        say("storage commitment asked for", calling=ae, instances=len(references))
        return status.SUCCESS, None

    def look_after_associations(self) -> None:
        """Note which associations have ended, and how."""
        for association, row in list(self._open.items()):
            if not association.is_alive():
                # Some senders abort all associations, when they have sent everything.
                aborted = "aborted" if association.dimse.is_idle else "broken off"
                how = "released" if association.is_released else aborted
                self.spool.do(
                    "UPDATE association SET ended=?, how=?, refused=? WHERE id=?",
                    *(time.time(), how, self._refused[row], row),
                )
                with self._lock:
                    del self._open[association], self._refused[row]
                say("association ended", association=row, how=how)

    def _row(self, association: Any) -> int | None:
        """The row of an association, made with its first instance; None if it cannot be written."""
        with self._lock:
            if association not in self._open:
                try:
                    row = self.spool.do("INSERT INTO association(opened) VALUES(?)", time.time())
                except Exception:
                    return None
                self._open[association] = row
                say("association opened", association=row, calling=association.requestor.ae_title.strip())
            return self._open[association]

    def _has_image(self, event: Any, sop: str) -> bool:
        """Tell whether the instance that is stored under a UID is the one that was sent, but for how it is encoded."""
        data = event.request.DataSet
        known = self.spool.row("SELECT file FROM instance WHERE sop=?", sop)
        if known is None or data.getbuffer().nbytes > MOST_BYTES:
            return False
        return is_same_image(self.spool.path("instances", known["file"]), _file_head(event) + data.getvalue())

    def _check_space(self, size: int) -> None:
        disk = os.statvfs(self.config.store)
        if disk.f_bavail * disk.f_frsize - size < self.config.free_mb * 1_000_000:
            raise Refused(status.OUT_OF_RESOURCES, "the disk is full")
        if self.spool.used() + size > self.config.disk_mb * 1_000_000:
            raise Refused(status.OUT_OF_RESOURCES, "the store has its full size")

    def _refuse(self, code: int, reason: str, association: int | None, facts: Facts | None) -> int:
        said = {"status": f"0x{code:04X}", "reason": reason, "association": association}
        say("instance refused", level=logging.WARNING, **said)
        with contextlib.suppress(Exception):
            self.spool.count("instances_refused")
        if association is not None and code != status.CLASS_NOT_SUPPORTED:
            self._refused[association] += 1
            with contextlib.suppress(Exception):  # a full disk: noted with the end of the association
                self.spool.do(
                    "UPDATE association SET refused=? WHERE id=?", self._refused[association], association
                )
                if facts is not None and code == status.OUT_OF_RESOURCES:  # may be sent again
                    self.spool.do(
                        "INSERT INTO refusal SELECT ?, ?, ?, ? WHERE (SELECT COUNT(*) FROM refusal) < ?",
                        *(association, facts.key, facts.sop, time.time(), _MOST_REFUSALS),
                    )
        return code


def read_facts(event: Any, config: Config) -> Facts:
    """Read and check the few elements of an instance that decide whether it is taken.

    Raises
    ------
    Refused
        With the status for the sender.
    """
    request = event.request
    sop_class, sop = str(request.AffectedSOPClassUID), str(request.AffectedSOPInstanceUID)
    if sop_class not in CT_CLASSES or event.context.abstract_syntax not in CT_CLASSES:
        raise Refused(status.CLASS_NOT_SUPPORTED, "no CT image")
    try:
        header = _header(request.DataSet, event.context.transfer_syntax)
        study, series = (str(header.get(tag) or "") for tag in ("StudyInstanceUID", "SeriesInstanceUID"))
        own = header.get("SOPClassUID", sop_class), header.get("SOPInstanceUID", sop)
        modality = header.get("Modality", "CT")
        largest = max(int(header.get("Rows") or 0), int(header.get("Columns") or 0))
        frames = int(header.get("NumberOfFrames") or 1)
        acquisition = header.get("AcquisitionNumber")
        facts = Facts(
            *(sop, sop_class, study, series),
            related=_count(header.get("NumberOfSeriesRelatedInstances")),
            acquisition=None if acquisition is None else str(acquisition)[:16],
            in_acquisition=_count(header.get("ImagesInAcquisition")),
        )
    except Exception as error:  # pydicom raises errors of many types
        raise Refused(status.CANNOT_UNDERSTAND, f"the data set cannot be read: {where(error)}") from error
    if own != (sop_class, sop):
        raise Refused(status.NOT_OF_ITS_CLASS, "the data set has other SOP UIDs than the request")
    if modality != "CT":
        raise Refused(status.NOT_OF_ITS_CLASS, "the modality is not CT")
    if not all(0 < len(uid) <= 64 for uid in (sop, study, series)):
        raise Refused(status.CANNOT_UNDERSTAND, "a UID of study, series or instance is missing or too long")
    if largest > config.rows or not 0 < frames <= config.frames:
        raise Refused(status.TOO_LARGE, "the image claims too many rows, columns or frames")
    return facts


def _header(data: BytesIO, transfer_syntax: str) -> Dataset:
    """The elements of `_TAGS`, read without the pixel data."""
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag
    from pydicom.uid import UID

    syntax = UID(transfer_syntax)
    data.seek(0)
    return read_dataset(
        data,
        is_implicit_VR=syntax.is_implicit_VR,
        is_little_endian=syntax.is_little_endian,
        stop_when=lambda tag, _vr, _length: tag >= _PIXELS,
        specific_tags=[Tag(name) for name in _TAGS],
    )


def _count(value: Any) -> int | None:
    number = int(value) if value not in (None, "") else 0
    return number if 0 < number < 100_000 else None


def _file_head(event: Any) -> bytes:
    """What stands before the data set in a DICOM file."""
    from pynetdicom.dsutils import encode_file_meta

    return b"\0" * 128 + b"DICM" + bytes(encode_file_meta(event.file_meta))


def make_entity(config: Config) -> Any:
    """The application entity with all presentation contexts that it accepts."""
    from pynetdicom import AE, AllStoragePresentationContexts

    entity = AE(ae_title=config.ae)
    entity.maximum_associations = config.associations
    entity.maximum_pdu_size = min(config.pdu_kb * 1024, 262_144) - 6
    entity.add_supported_context(VERIFICATION, list(UNCOMPRESSED))
    entity.add_supported_context(STORAGE_COMMITMENT, list(UNCOMPRESSED))
    for sop_class in CT_CLASSES:
        entity.add_supported_context(sop_class, [*UNCOMPRESSED, *COMPRESSED])
    # To be refused one by one with a status, after which most senders go on with their study.
    for context in AllStoragePresentationContexts:
        if context.abstract_syntax not in CT_CLASSES:
            entity.add_supported_context(str(context.abstract_syntax), list(UNCOMPRESSED))
    return entity


def tls_context(config: Config, *, server: bool) -> ssl.SSLContext | None:
    """TLS with certificates on both sides; None if the node has none.

    Raises
    ------
    ArgumentError
        If the certificates or the key cannot be read.
    """
    if config.tls_cert is None:
        return None
    try:
        context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH, cafile=str(config.tls_ca)
        )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_password)
    except OSError as error:  # an SSLError, too
        raise ArgumentError(
            f"tls_cert, tls_key, tls_ca: got {config.tls_cert}, {config.tls_key} and {config.tls_ca}, which cannot be "
            f"used ({error.strerror or error}); expected PEM files that this user can read, the key that belongs to "
            "the certificate, and no password on it"
        ) from error
    return context


def _no_password() -> str:
    """Stand for the password of a key that has one; by default OpenSSL asks the terminal, and waits."""
    return ""


def start(config: Config, spool: Spool) -> tuple[Server, Receiver]:
    """Begin to serve, in a thread; the receiver is to be told to look after its associations now and then."""
    from pynetdicom import _config, evt

    from trtseg.node.guard import Handler, Server

    _config.LOG_HANDLER_LEVEL = "none"
    _config.LOG_REQUEST_IDENTIFIERS = _config.LOG_RESPONSE_IDENTIFIERS = False
    spool.do("UPDATE association SET ended=?, how='lost' WHERE ended IS NULL", time.time())
    receiver = Receiver(config, spool)
    entity = make_entity(config)
    handlers: list[Any] = [
        (evt.EVT_REQUESTED, receiver.requested),
        (evt.EVT_REJECTED, receiver.rejected),
        (evt.EVT_CONN_CLOSE, receiver.closed),
        (evt.EVT_C_ECHO, receiver.echo),
        (evt.EVT_C_STORE, receiver.store),
        (evt.EVT_N_ACTION, receiver.commit),
    ]
    server: Any = entity.make_server(
        (config.host, config.port),
        ssl_context=tls_context(config, server=True),
        evt_handlers=handlers,
        server_class=Server,
        request_handler=Handler,
    )
    server.config = config
    entity._servers.append(server)  # so that it can be shut down
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, daemon=True).start()
    port = server.server_address[1]
    say("listening", ae=config.ae, host=config.host, port=port, tls=config.tls_cert is not None)
    return server, receiver


def receive(config: Config) -> None:
    """Serve until SIGTERM; the body of the receiving process."""
    if config.receiver_mb:
        resource.setrlimit(resource.RLIMIT_AS, (config.receiver_mb * 1_000_000,) * 2)
    stop = Stop(signal.SIGTERM)
    threading.stack_size(1 << 20)  # counts as memory, twice an association
    spool = Spool(config.store)
    lock = spool.lock("receive")
    spool.sweep("instances", "instance")
    server, receiver = start(config, spool)
    while not stop.wait(0.1):
        try:
            receiver.look_after_associations()
        except Exception as error:  # a full disk: tried again
            say("cannot note the end of an association", level=logging.WARNING, reason=where(error))
            stop.wait(5)
    server.shutdown()
    for association in server.active_associations:
        association._abort_nonblocking()
    receiver.look_after_associations()
    lock.close()
    say("stopped")
    os._exit(0)  # threads of pynetdicom may still wait for a peer
