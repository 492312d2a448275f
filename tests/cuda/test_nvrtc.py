"""Every .cu compiles for every architecture, and none of its kernels spills: see tools/nvrtc_check.py."""

from pathlib import Path

import pytest

from tools.cuda_variants import allows, may_have_stack, variants
from tools.nvrtc_check import ARCHS, Job, check, check_all, jobs_of, nvrtc, sources


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    try:
        nvrtc()
    except ImportError as error:
        pytest.skip(str(error))


MANY = 60
"""From so many variants on, of formats and of three sizes, a normal run compiles one of three."""


def fail_on(wrong: list[str]) -> None:
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_kernels_compile_and_do_not_spill(path: Path) -> None:
    """The first variant on every architecture, and the others on one each, in turn.

    Of many each format in one size, in turn; the others in the slow run.
    """
    all_variants = list(enumerate(variants(path)))
    chosen = [(i, v) for i, v in all_variants if len(all_variants) < MANY or i % 3 == i // 3 % 3]
    others = [Job(path, ARCHS[i % len(ARCHS)], defines) for i, defines in chosen[1:]]
    # Here and not in processes of its own: other tests have the other processors.
    fail_on([line for job in [*jobs_of(path)[: len(ARCHS)], *others] for line in check(job)[1]])


@pytest.mark.slow
@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_kernels_compile_and_do_not_spill_on_any_architecture(path: Path) -> None:
    fail_on([line for _, _, lines in check_all(jobs_of(path)) for line in lines])


@pytest.mark.parametrize("file", ["instructions.cu", "intrinsics.cu"])
def test_what_the_emulator_has_is_what_nvrtc_has(file: str) -> None:
    path = Path(__file__).parent / file
    for arch in ARCHS:
        assert check(Job(path, arch, {}))[1] == []


def write(folder: Path, text: str) -> Path:
    path = folder / "kernel.cu"
    path.write_text(text)
    return path


SPILLS = """
extern "C" __global__ void __launch_bounds__(1024) spills(float* x, int n) {
    float a[100];
#pragma unroll
    for (int i = 0; i < 100; i++) a[i] = x[i * n];
    __syncthreads();
#pragma unroll
    for (int i = 0; i < 100; i++) x[i * n + 1] = a[i] * a[99 - i];
}
"""


def test_spills_are_found(tmp_path: Path) -> None:
    uses, wrong = check(Job(write(tmp_path, SPILLS), 89, {}))
    assert uses[0].name == "spills"
    assert uses[0].registers == 64
    assert uses[0].spilled > 0
    assert wrong == [
        f"kernel.cu sm_89: spills has a stack frame of {uses[0].stack} bytes, and spills {uses[0].spilled}"
    ]


STACK = """// Header.
// stack: other indexed
extern "C" __global__ void indexed(float* x, int n) {
    float a[300];
    for (int i = 0; i < 300; i++) a[(i * n) & 255] = x[i];
    x[n] = a[n];
}
"""


def test_a_stack_frame_must_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path, STACK)
    uses, wrong = check(Job(path, 89, {}))
    assert uses[0].stack > 0
    assert wrong == []
    assert may_have_stack(path) == {"other", "indexed"}
    wrong = check(Job(write(tmp_path, STACK.replace("other indexed", "other")), 89, {}))[1]
    assert len(wrong) == 1


def test_what_does_not_compile_is_told(tmp_path: Path) -> None:
    [line] = check(Job(write(tmp_path, 'extern "C" __global__ void f(float* x) { x[0] = y; }'), 75, {}))[1]
    assert line.startswith("kernel.cu sm_75 does not compile")
    assert 'identifier "y" is undefined' in line
    assert check(Job(write(tmp_path, "__device__ int x;"), 75, {}))[1] == [
        "kernel.cu sm_75: there is no kernel"
    ]
    [line] = check(Job(write(tmp_path, "#define F <a.h>\n#include F"), 75, {}))[1]
    assert "only plain names can be followed" in line


def test_variants(tmp_path: Path) -> None:
    path = write(tmp_path, "// A kernel.\n// variants: A=1|2 B=x|y\n// variants: A=3 B=x\n")
    assert variants(path) == [
        {"A": "1", "B": "x"},
        {"A": "1", "B": "y"},
        {"A": "2", "B": "x"},
        {"A": "2", "B": "y"},
        {"A": "3", "B": "x"},
    ]
    assert variants(write(tmp_path, "int x;\n")) == [{}]


def test_a_macro_with_data_has_any_value(tmp_path: Path) -> None:
    text = 'extern "C" __global__ void f(int* x) { const int a[] = {DATA}; x[0] = a[0] + A; }\n'
    path = write(tmp_path, f"// variants: A=1 DATA=*\n{text}")
    assert allows(path, {"DATA": "1,2,3", "A": "1"})
    assert not allows(path, {"DATA": "1", "A": "2"})
    assert not allows(path, {"A": "1"})
    [job] = jobs_of(path, (75,))
    assert check(job)[1] == []


def test_some_values_are_named_where_any_are_allowed(tmp_path: Path) -> None:
    path = write(tmp_path, "// A kernel.\n// variants: A=1|2|*\n//     B=x\n// B=y\n")
    assert variants(path) == [{"A": "1", "B": "x"}, {"A": "2", "B": "x"}]
    assert allows(path, {"A": "7", "B": "x"})
    assert not allows(path, {"A": "1", "B": "y"})
