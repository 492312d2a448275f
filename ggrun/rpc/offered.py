"""A worker's devices as the planner sees them: what it says of them is checked."""

from dataclasses import replace

from ggrun.devices.names import DeviceName
from ggrun.plan.hardware import CARD_EFFICIENCY, CARD_HALF_LAYER, DeviceInfo
from ggrun.rpc import ggrun_pb2 as pb
from ggrun.rpc.wire import ProtocolError, shown

MOST_DEVICES = 64
_MOST = 1 << 60
_SLOWEST, _FASTEST = 1e3, 1e20  # bytes or operations a second: with others times would be no numbers


def devices_of(host: str, welcome: "pb.Welcome", latency: float, bandwidth: float) -> list[DeviceInfo]:
    """The devices of a worker, with the way to it; ProtocolError for numbers that no device has."""
    found = welcome.devices
    if len(found) > MOST_DEVICES or len({d.name for d in found}) < len(found):
        raise ProtocolError(f"{host}: too many devices, or one twice")
    return [_device(host, d, latency, bandwidth) for d in found]


def _device(host: str, d: "pb.Device", latency: float, bandwidth: float) -> DeviceInfo:
    speeds = (d.bandwidth, d.operations, d.float_operations, d.unpacked, d.link)
    sane = all(speed == 0 or _SLOWEST <= speed <= _FASTEST for speed in speeds)
    if not (sane and d.bandwidth > 0 and d.operations > 0 and 0 <= d.free <= _MOST and d.memory <= _MOST):
        raise ProtocolError(f"{host}: the worker has a device with numbers that no device has")
    is_card = DeviceName.parse(d.name).kind == "cuda"
    device = DeviceInfo(
        f"{host}/{d.name}", d.memory, d.free, d.bandwidth, d.operations, d.link or d.bandwidth,
        shown(d.label)[:40], shared=False, float_operations=d.float_operations, unpacked=d.unpacked,
        latency=latency, network=bandwidth,
    )  # fmt: skip
    return replace(device, efficiency=CARD_EFFICIENCY, half_layer=CARD_HALF_LAYER) if is_card else device
