from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Form(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    F32: _ClassVar[Form]
    F16: _ClassVar[Form]
    BF16: _ClassVar[Form]
F32: Form
F16: Form
BF16: Form

class Request(_message.Message):
    __slots__ = ("hello", "ping", "open", "chunk", "forward", "interrupt", "reset", "invite", "handoff")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    INTERRUPT_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    INVITE_FIELD_NUMBER: _ClassVar[int]
    HANDOFF_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    ping: Ping
    open: Open
    chunk: Chunk
    forward: Forward
    interrupt: Interrupt
    reset: Reset
    invite: Invite
    handoff: Handoff
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., open: _Optional[_Union[Open, _Mapping]] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., forward: _Optional[_Union[Forward, _Mapping]] = ..., interrupt: _Optional[_Union[Interrupt, _Mapping]] = ..., reset: _Optional[_Union[Reset, _Mapping]] = ..., invite: _Optional[_Union[Invite, _Mapping]] = ..., handoff: _Optional[_Union[Handoff, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "version")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("number", "ballast")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BALLAST_FIELD_NUMBER: _ClassVar[int]
    number: int
    ballast: bytes
    def __init__(self, number: _Optional[int] = ..., ballast: _Optional[bytes] = ...) -> None: ...

class Open(_message.Message):
    __slots__ = ("plan", "parts", "metadata", "tensors", "n_ctx", "n_ubatch", "outputs", "sequences", "cache_keys", "cache_values", "slots", "form")
    PLAN_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    N_CTX_FIELD_NUMBER: _ClassVar[int]
    N_UBATCH_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    CACHE_KEYS_FIELD_NUMBER: _ClassVar[int]
    CACHE_VALUES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    plan: str
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    metadata: str
    tensors: _containers.RepeatedCompositeFieldContainer[Tensor]
    n_ctx: int
    n_ubatch: int
    outputs: int
    sequences: int
    cache_keys: str
    cache_values: str
    slots: int
    form: Form
    def __init__(self, plan: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ..., metadata: _Optional[str] = ..., tensors: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., n_ctx: _Optional[int] = ..., n_ubatch: _Optional[int] = ..., outputs: _Optional[int] = ..., sequences: _Optional[int] = ..., cache_keys: _Optional[str] = ..., cache_values: _Optional[str] = ..., slots: _Optional[int] = ..., form: _Optional[_Union[Form, str]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("begin", "end")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    begin: int
    end: int
    def __init__(self, begin: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "shape", "format", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    format: int
    sha256: bytes
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., format: _Optional[int] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("tensor", "offset", "data")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    tensor: int
    offset: int
    data: bytes
    def __init__(self, tensor: _Optional[int] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Forward(_message.Message):
    __slots__ = ("run", "batch", "part", "tokens", "positions", "sequences", "slots", "outputs", "tables", "activations", "pushed", "top", "words")
    RUN_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    POSITIONS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TABLES_FIELD_NUMBER: _ClassVar[int]
    ACTIVATIONS_FIELD_NUMBER: _ClassVar[int]
    PUSHED_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    run: int
    batch: int
    part: int
    tokens: bytes
    positions: bytes
    sequences: bytes
    slots: bytes
    outputs: bytes
    tables: _containers.RepeatedCompositeFieldContainer[Table]
    activations: bytes
    pushed: int
    top: int
    words: int
    def __init__(self, run: _Optional[int] = ..., batch: _Optional[int] = ..., part: _Optional[int] = ..., tokens: _Optional[bytes] = ..., positions: _Optional[bytes] = ..., sequences: _Optional[bytes] = ..., slots: _Optional[bytes] = ..., outputs: _Optional[bytes] = ..., tables: _Optional[_Iterable[_Union[Table, _Mapping]]] = ..., activations: _Optional[bytes] = ..., pushed: _Optional[int] = ..., top: _Optional[int] = ..., words: _Optional[int] = ...) -> None: ...

class Table(_message.Message):
    __slots__ = ("sequence", "pages")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    pages: bytes
    def __init__(self, sequence: _Optional[int] = ..., pages: _Optional[bytes] = ...) -> None: ...

class Interrupt(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reset(_message.Message):
    __slots__ = ("run", "resume")
    RUN_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    run: int
    resume: bool
    def __init__(self, run: _Optional[int] = ..., resume: _Optional[bool] = ...) -> None: ...

class Invite(_message.Message):
    __slots__ = ("part",)
    PART_FIELD_NUMBER: _ClassVar[int]
    part: int
    def __init__(self, part: _Optional[int] = ...) -> None: ...

class Handoff(_message.Message):
    __slots__ = ("part", "address", "key", "fingerprint")
    PART_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    part: int
    address: str
    key: bytes
    fingerprint: bytes
    def __init__(self, part: _Optional[int] = ..., address: _Optional[str] = ..., key: _Optional[bytes] = ..., fingerprint: _Optional[bytes] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("welcome", "pong", "missing", "received", "ready", "result", "failed", "invited", "handed")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    PONG_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    INVITED_FIELD_NUMBER: _ClassVar[int]
    HANDED_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    pong: Pong
    missing: Missing
    received: Received
    ready: Ready
    result: Result
    failed: Failed
    invited: Invited
    handed: Handed
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., pong: _Optional[_Union[Pong, _Mapping]] = ..., missing: _Optional[_Union[Missing, _Mapping]] = ..., received: _Optional[_Union[Received, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., result: _Optional[_Union[Result, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., invited: _Optional[_Union[Invited, _Mapping]] = ..., handed: _Optional[_Union[Handed, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("protocol", "version", "devices")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    version: str
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, protocol: _Optional[int] = ..., version: _Optional[str] = ..., devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "label", "memory", "free", "bandwidth", "operations", "float_operations", "unpacked", "link")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    FREE_FIELD_NUMBER: _ClassVar[int]
    BANDWIDTH_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    FLOAT_OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    UNPACKED_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    name: str
    label: str
    memory: int
    free: int
    bandwidth: float
    operations: float
    float_operations: float
    unpacked: float
    link: float
    def __init__(self, name: _Optional[str] = ..., label: _Optional[str] = ..., memory: _Optional[int] = ..., free: _Optional[int] = ..., bandwidth: _Optional[float] = ..., operations: _Optional[float] = ..., float_operations: _Optional[float] = ..., unpacked: _Optional[float] = ..., link: _Optional[float] = ...) -> None: ...

class Pong(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Missing(_message.Message):
    __slots__ = ("wants",)
    WANTS_FIELD_NUMBER: _ClassVar[int]
    wants: _containers.RepeatedCompositeFieldContainer[Want]
    def __init__(self, wants: _Optional[_Iterable[_Union[Want, _Mapping]]] = ...) -> None: ...

class Want(_message.Message):
    __slots__ = ("tensor", "offset")
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    tensor: int
    offset: int
    def __init__(self, tensor: _Optional[int] = ..., offset: _Optional[int] = ...) -> None: ...

class Received(_message.Message):
    __slots__ = ("bytes",)
    BYTES_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    def __init__(self, bytes: _Optional[int] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, tensors: _Optional[_Iterable[str]] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("run", "batch", "part", "values", "ids")
    RUN_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    run: int
    batch: int
    part: int
    values: bytes
    ids: bytes
    def __init__(self, run: _Optional[int] = ..., batch: _Optional[int] = ..., part: _Optional[int] = ..., values: _Optional[bytes] = ..., ids: _Optional[bytes] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("kind", "text", "run", "part")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        OTHER: _ClassVar[Failed.Kind]
        VERSION: _ClassVar[Failed.Kind]
        NO_ROOM: _ClassVar[Failed.Kind]
        INTERRUPTED: _ClassVar[Failed.Kind]
        PROTOCOL: _ClassVar[Failed.Kind]
        HANDOFF: _ClassVar[Failed.Kind]
    OTHER: Failed.Kind
    VERSION: Failed.Kind
    NO_ROOM: Failed.Kind
    INTERRUPTED: Failed.Kind
    PROTOCOL: Failed.Kind
    HANDOFF: Failed.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    kind: Failed.Kind
    text: str
    run: int
    part: int
    def __init__(self, kind: _Optional[_Union[Failed.Kind, str]] = ..., text: _Optional[str] = ..., run: _Optional[int] = ..., part: _Optional[int] = ...) -> None: ...

class Invited(_message.Message):
    __slots__ = ("part", "key")
    PART_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    part: int
    key: bytes
    def __init__(self, part: _Optional[int] = ..., key: _Optional[bytes] = ...) -> None: ...

class Handed(_message.Message):
    __slots__ = ("part", "ok")
    PART_FIELD_NUMBER: _ClassVar[int]
    OK_FIELD_NUMBER: _ClassVar[int]
    part: int
    ok: bool
    def __init__(self, part: _Optional[int] = ..., ok: _Optional[bool] = ...) -> None: ...

class InboxRequest(_message.Message):
    __slots__ = ("push",)
    PUSH_FIELD_NUMBER: _ClassVar[int]
    push: Push
    def __init__(self, push: _Optional[_Union[Push, _Mapping]] = ...) -> None: ...

class Push(_message.Message):
    __slots__ = ("batch", "values")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    batch: int
    values: bytes
    def __init__(self, batch: _Optional[int] = ..., values: _Optional[bytes] = ...) -> None: ...

class Pushed(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
