"""Writes ggrun/rpc/ggrun_pb2.py and its types from ggrun.proto: python -m tools.make_protocol."""

import sys
from importlib.resources import files
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "ggrun" / "rpc"


def make(out: Path) -> None:
    """Write both files into a folder; SystemExit when the .proto is wrong."""
    from grpc_tools import protoc

    include = files("grpc_tools") / "_proto"
    status = protoc.main(
        ["protoc", f"-I{FOLDER}", f"-I{include}", f"--python_out={out}", f"--pyi_out={out}", "ggrun.proto"]
    )
    if status:
        sys.exit(status)


if __name__ == "__main__":
    make(FOLDER)
