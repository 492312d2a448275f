"""Memory of an emulated card: between guard pages, and full of NaNs when it is fresh."""

from weakref import finalize

from ggrun.devices.cuda.driver import OutOfMemory
from tools.cuda_emulator.kernels import KernelError, runtime


class Memory:
    """An allocation; aligned to 256 bytes, and freed when it is dropped.

    A kernel that touches what is around it fails, but for the slack that makes the size a multiple of 256:
    what is read there is a huge number, and `free` tells of what was written there.
    """

    def __init__(self, nbytes: int) -> None:
        address = runtime().emu_allocate(nbytes)
        if address is None:
            raise OutOfMemory(f"the host has no room for {nbytes} bytes of an emulated card")
        self.address: int = address
        self.nbytes = nbytes
        self._free = finalize(self, runtime().emu_free, address)

    def free(self) -> None:
        """Now; KernelError if something was written past the end."""
        freed = self._free.detach()
        if freed and runtime().emu_free(self.address):
            raise KernelError(f"something wrote past the end of an array of {self.nbytes} bytes")
