"""What a node is told: a TOML file, and options that win over it."""

from __future__ import annotations

import dataclasses
import importlib.util
import ipaddress
import os
import tomllib
import types
import typing
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trtseg.engines.precision import FP16, candidates
from trtseg.errors import ArgumentError, InputError
from trtseg.io.dicom_out import check_kinds
from trtseg.node.spool import FOLDERS

KINDS = ("seg", "sr", "sc")
# Settings of which 0 would stop the node, or make it call a destination that is away all the time.
_POSITIVE = (
    "associations", "pdu_kb", "instance_mb", "buffer_mb", "rows", "frames", "series_instances", "open_series",
    "streams", "threads", "retry_s", "retry_most_s",
)  # fmt: skip
# MB of address space: with less, the one process does not start, and the other segments not even a CT of 64 x 64.
_LEAST_MB = {"receiver_mb": 250, "worker_mb": 500}


class Peer(NamedTuple):
    """A DICOM node that is called: its AE title and where it listens."""

    ae: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str, name: str) -> Peer:
        """``AE@host:port``, with an IPv6 address in brackets."""
        ae, at, place = text.partition("@")
        host, colon, port = place.rpartition(":")
        is_host = host and not set(host) & set("@,/ ")
        if not (_is_ae(ae) and at and colon and is_host and port.isdecimal() and 0 < int(port) < 65536):
            raise ArgumentError(f"{name}: got {text!r}; expected AE@host:port, as ORTHANC@10.0.0.7:4242")
        return cls(ae, host.strip("[]"), int(port))


class Caller(NamedTuple):
    """Who may call: an AE title (``*``: any) from a network (None: any)."""

    ae: str
    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None

    @classmethod
    def parse(cls, text: str) -> Caller:
        """``AE@network``, ``AE`` or ``*@network``."""
        ae, at, place = text.partition("@")
        try:
            network = ipaddress.ip_network(place) if at else None
        except ValueError:
            network, ae = None, ""
        if ae != "*" and not _is_ae(ae):
            raise ArgumentError(
                f"allow: got {text!r}; expected AE@address, AE@network/bits, AE, or * instead of the AE title"
            )
        return cls(ae, network)

    def covers(self, address: str, ae: str | None = None) -> bool:
        """Tell whether this entry lets an address, and an AE title if one is given, in."""
        ip = ipaddress.ip_address(address.partition("%")[0])
        if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
            ip = ip.ipv4_mapped
        return (self.network is None or ip in self.network) and (ae is None or self.ae in ("*", ae))


@dataclass(frozen=True)
class Config:
    """All that a node can be told, by the names of the TOML file; sizes in MB (10^6 bytes), times in seconds.

    Attributes
    ----------
    store : Path
        Folder of everything that the node keeps; made if needed, readable by its owner only.
    ae, host, port : str, str, int
        The AE title that callers must name, and where the node listens.
    allow : tuple of str
        Who may call, as ``AE@address``, ``AE@network/bits``, ``AE`` or ``*@...``. Without it everybody on the machine
        itself may, and the node refuses to listen anywhere else.
    send, stow, folder : tuple
        Where results go: ``AE@host:port``, URLs of DICOMweb servers, folders.
    commit : tuple of str
        ``AE@host:port`` of senders that ask for storage commitment: where its result is reported to.
    results : tuple of str
        Which results are made: ``seg``, ``sr``, ``sc``.
    tls_cert, tls_key, tls_ca : Path, optional
        With certificate and key the node speaks TLS only, and callers need a certificate that ``tls_ca`` signed.
    send_tls : bool
        Speak TLS, with the same certificate, to the nodes of ``send`` and ``commit`` too.
    quiet_s, long_quiet_s : float
        Silence after which a series ends: the second where an association is open or was broken off, or headers speak
        of more instances, else the first. `trtseg.node.ending` has the rules, by which a complete series ends at once.
    associations : int
        Associations at the same time, in all.
    pdu_kb, instance_mb, buffer_mb : int
        The largest PDU (in 1024 bytes) and instance that are taken, and bytes of instances half received, in all.
    rows, frames, series_instances, open_series : int
        The most rows or columns of an image, frames of an instance, instances of a series, and series that are not
        finished.
    disk_mb, free_mb : int
        The most that all instances and results may take, without those that were rejected, and the least free space on
        the disk. Beyond either, instances are refused.
    keep_s, keep_dead_s : float
        How long instances of finished series are kept, and what was rejected.
    receiver_mb, worker_mb : int
        Address space of the receiving and of the segmenting process, at least 250 and 500, which does for small
        images; 0 for no limit.
    streams : int
        Series that are segmented while they arrive, side by side; each takes its voxels in memory.
    retry_s, retry_most_s : float
        The first and the longest time between two attempts to send a result; it doubles in between.
    http_host, http_port : str, int
        Where ``/metrics`` and ``/health`` are served; port 0 for nowhere.
    model, device, precision, threads
        As of `trtseg.Segmenter`.
    """

    store: Path
    ae: str = "TRTSEG"
    host: str = "127.0.0.1"
    port: int = 11112
    allow: tuple[str, ...] = ()
    send: tuple[str, ...] = ()
    stow: tuple[str, ...] = ()
    folder: tuple[Path, ...] = ()
    commit: tuple[str, ...] = ()
    results: tuple[str, ...] = KINDS
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    send_tls: bool = False
    quiet_s: float = 3.0
    long_quiet_s: float = 30.0
    associations: int = 16
    pdu_kb: int = 1024
    instance_mb: int = 512
    buffer_mb: int = 768
    rows: int = 4096
    frames: int = 4096
    series_instances: int = 4096
    open_series: int = 64
    disk_mb: int = 50_000
    free_mb: int = 1_000
    keep_s: float = 86_400.0
    keep_dead_s: float = 30 * 86_400.0
    receiver_mb: int = 2_500
    worker_mb: int = 0
    streams: int = 4
    retry_s: float = 2.0
    retry_most_s: float = 300.0
    http_host: str = "127.0.0.1"
    http_port: int = 0
    model: str = "default"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if not _is_ae(self.ae):
            raise ArgumentError(
                f"ae: got {self.ae!r}; expected 1 to 16 printable ASCII characters but \\ and @"
            )
        if not self.allow and not _is_loopback(self.host):
            raise ArgumentError(
                f"allow: got none with host {self.host}; expected who may call, as CT1@10.0.0.5, for a node that "
                "listens to other machines"
            )
        if not self.destinations:
            raise ArgumentError("send, stow, folder: got none; expected at least one place for results")
        if not self.results or set(self.results) - set(KINDS):
            raise ArgumentError(f"results: got {list(self.results)}; expected some of {', '.join(KINDS)}")
        check_kinds(self.results, "results")
        kind = self.device.partition(":")[0]
        if kind in ("cpu", "cuda"):
            candidates(self.precision, kind)
        elif self.precision != FP16.name:  # `auto` may be a GPU: `trtseg serve` finds out
            candidates(self.precision, "cpu")
        self._check_tls()
        self._check_numbers()
        self._check_places()

    def _check_tls(self) -> None:
        given = [name for name in ("tls_cert", "tls_key", "tls_ca") if getattr(self, name)]
        if len(given) not in (0, 3):
            raise ArgumentError(
                f"tls: got {' and '.join(given)} alone; expected tls_cert, tls_key and tls_ca together, or none of them"
            )
        if self.send_tls and not self.tls_cert:
            raise ArgumentError("send_tls: expected tls_cert, tls_key and tls_ca with it")

    def _check_numbers(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and not 0 <= value < 1e12:
                raise ArgumentError(f"{field.name}: got {value}; expected no negative number")
        for name in _POSITIVE:
            if getattr(self, name) == 0:
                raise ArgumentError(f"{name}: got 0; expected more than 0")
        for name, least in _LEAST_MB.items():
            if 0 < getattr(self, name) < least:
                raise ArgumentError(
                    f"{name}: got {getattr(self, name)}; expected at least {least}, which the process needs to start "
                    "and to work, or 0 for no limit"
                )
        for name in ("port", "http_port"):
            if getattr(self, name) > 65535:
                raise ArgumentError(f"{name}: got {getattr(self, name)}; expected a port, at most 65535")
        if self.http_port and self.http_port == self.port:
            raise ArgumentError(
                f"http_port: got {self.http_port}, which is the port of the node too; expected another one, or "
                "0 for none"
            )

    def _check_places(self) -> None:
        for folder in self.folder:
            if any(self.store / own in (folder, *folder.parents) for own in FOLDERS):
                raise ArgumentError(
                    f"folder: got {folder}, from which the node removes files, since it belongs to its store; expected "
                    "another folder"
                )
        _ = self.callers, self.peers, self.commit_peers  # are parsed once, to be refused here
        if len(self.commit_peers) < len(set(self.commit)):
            raise ArgumentError(
                f"commit: got {', '.join(self.commit)}; expected one address for each AE title, which is all that a "
                "request is known by"
            )
        for url in self.stow:
            if not _is_url(url):
                raise ArgumentError(
                    f"stow: got {url!r}; expected a URL with http:// or https:// and a host, as "
                    "https://10.0.0.7:8042/dicom-web"
                )

    @property
    def callers(self) -> tuple[Caller, ...]:
        """Who may call."""
        return tuple(Caller.parse(text) for text in self.allow or ("*@127.0.0.0/8", "*@::1"))

    @property
    def peers(self) -> dict[str, Peer]:
        """The nodes that results are sent to, by the text of ``send``."""
        return {text: Peer.parse(text, "send") for text in self.send}

    @property
    def commit_peers(self) -> dict[str, Peer]:
        """The nodes that storage commitment is reported to, by AE title."""
        return {peer.ae: peer for peer in (Peer.parse(text, "commit") for text in self.commit)}

    @property
    def destinations(self) -> tuple[str, ...]:
        """Where each result goes, once, as ``send:...``, ``stow:...`` and ``folder:...``."""
        places = (
            *(f"send:{text}" for text in self.send),
            *(f"stow:{url}" for url in self.stow),
            *(f"folder:{path}" for path in self.folder),
        )
        return tuple(dict.fromkeys(places))


def load(file: str | os.PathLike[str] | None, options: Mapping[str, Any]) -> Config:
    """Make a Config of a TOML file and of options; an option that is neither None nor empty wins.

    Raises
    ------
    InputError
        If the file cannot be read or is no TOML.
    ArgumentError
        If a name is unknown or a value wrong.
    """
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(Path(file).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{file}: cannot be read ({error.strerror}); check the path") from error
        except ValueError as error:
            raise InputError(f"{file}: is no TOML ({error})") from error
    values |= {name: value for name, value in options.items() if value not in (None, (), [])}
    types_of = typing.get_type_hints(Config)
    for name, value in values.items():
        if name not in types_of:
            raise ArgumentError(f"{name}: is no setting of a node; expected one of {', '.join(types_of)}")
        values[name] = _convert(name, value, types_of[name])
    if "store" not in values:
        raise ArgumentError("store: got none; expected the folder in which the node keeps what it received")
    return Config(**values)


def check_installed(config: Config) -> None:
    """Raise an InputError unless the packages that a node needs are installed."""
    wanted = ["pynetdicom", "pydicom", "highdicom"]
    wanted += ["prometheus_client"] if config.http_port else []
    wanted += ["dicomweb_client"] if config.stow else []
    for name in wanted:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"a node needs {name}, which is not installed; pip install 'trtseg[node]'")


def _convert(name: str, value: Any, kind: Any) -> Any:
    """A value of TOML or of an option as the type of its field."""
    if typing.get_origin(kind) is types.UnionType:
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        values = [value] if isinstance(value, (str, Path)) else value
        if isinstance(values, (list, tuple)):
            return tuple(_convert(name, part, item) for part in values)
    elif kind is Path and isinstance(value, (str, Path)):
        if value == "":
            raise ArgumentError(
                f"{name}: got an empty path, which would be the current folder; expected its path"
            )
        return Path(os.path.abspath(value))  # noqa: PTH100 - keeps links
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise ArgumentError(f"{name}: got {value!r}; expected {getattr(kind, '__name__', kind)}")


def _is_ae(text: str) -> bool:
    return (
        0 < len(text) <= 16 and all(" " <= c <= "~" and c not in "\\@" for c in text) and text == text.strip()
    )


def _is_url(text: str) -> bool:
    try:
        url = urllib.parse.urlsplit(text)
        return text.startswith(("http://", "https://")) and bool(url.hostname) and url.port != 0
    except ValueError:  # an address or a port that is none
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
