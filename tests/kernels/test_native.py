"""The native operators without ONNX Runtime: under sanitizers and an emulator, and what the library gives away."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from native import LIBRARY
from places import ROOT

KERNELS = ROOT / "kernels"
NVCC = shutil.which("nvcc") or shutil.which(KERNELS.parent / "build" / "nvcc" / "nvidia" / "cu13" / "bin" / "nvcc")
needs_compiler = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("g++")), reason="no CMake or no C++ compiler"
)
ARM = platform.machine() in ("aarch64", "arm64")
PRODUCTS = "neondot" if ARM else "avx2"  # what has products at least


def native_tests(build: Path, *options: str) -> Path:
    """Builds into `build`, which is kept: a second run compiles what changed."""
    subprocess.run(["cmake", "-S", str(KERNELS), "-B", str(build), *options], check=True, capture_output=True)
    make = ["cmake", "--build", str(build), "--target", "native_tests", "-j", "2"]
    made = subprocess.run(make, capture_output=True, text=True)
    assert made.returncode == 0, made.stdout + made.stderr
    return build


def run_native(command: list[str | Path], cases: int) -> str:
    ran = subprocess.run([*command, "1", str(cases)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{cases} cases" in ran.stdout and " 0 failures" in ran.stdout
    return ran.stdout


@pytest.mark.long
@needs_compiler
def test_fuzzed_shapes_under_address_and_undefined_behaviour_sanitizers():
    build = native_tests(KERNELS.parent / "build" / "kernels-sanitized", "-DPYTHIA_SANITIZE=ON")
    ran = run_native([build / "rotary_attention_test"], 60)
    assert "ran: wide" in ran  # the 16 lanes of AVX-512 in plain C++
    run_native([build / "partial_rotary_test"], 60)
    assert "ran: cuda, emulated" in run_native([build / "beam_test"], 100)
    assert f"ran: {PRODUCTS}" in run_native([build / "decoder_layers_test"], 40)
    run_native([build / "draw_test"], 100)
    assert f"ran: {PRODUCTS}" in run_native([build / "matmul_nbits_test"], 200)
    assert "ran: cuda, emulated" in run_native([build / "rotary_attention_cuda_test"], 60)


@pytest.mark.long
@pytest.mark.skipif(not NVCC, reason="no nvcc; `make cuda` brings one")
@pytest.mark.parametrize(
    ("source", "kernels", "hungriest"),
    [
        ("rotary_attention/cuda/attend.cu", 72, r"\w+aLi256E\w+"),  # int8 in the cache, the largest head
        ("partial_rotary/cuda/rotate.cu", 3, r"\w+"),
        ("beam/cuda.cu", 3, r"\w+"),
    ],
)
def test_the_cuda_kernels_stay_in_registers(tmp_path, source, kernels, hungriest):
    """An array that is indexed in a loop that was not unrolled would lie in memory: PTX says so of every kernel. What
    the registers have no room for would lie there too: the assembler says so, asked of those that want the most."""
    ptx, out = tmp_path / "out.ptx", tmp_path / "out.cubin"
    ran = subprocess.run(
        [NVCC, "-std=c++17", "-arch=sm_80", "-ptx", "-o", ptx, KERNELS / source], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    entries = re.findall(r"\.entry (\w+)", ptx.read_text())
    assert len(entries) >= kernels and not re.findall(r".*\.local\b.*", ptx.read_text())
    chosen = [part for name in entries if re.fullmatch(hungriest, name) for part in ("-e", name)]
    assembler = Path(NVCC).resolve().with_name("ptxas")
    ran = subprocess.run(
        [assembler if assembler.is_file() else "ptxas", "-arch=sm_80", "-v", *chosen, "-o", out, ptx],
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    frames = [int(n) for n in re.findall(r"(\d+) bytes stack frame", ran.stderr)]
    assert len(frames) >= len(chosen) // 2 > 0 and max(frames) <= 32, ran.stderr


@pytest.mark.skipif(not shutil.which("clang++"), reason="no Clang")
@pytest.mark.parametrize("source", sorted(KERNELS.rglob("*.cc")), ids=lambda path: str(path.relative_to(KERNELS)))
def test_clang_takes_every_source_without_a_warning(source):
    """Other compilers know fewer of GCC's built-in functions."""
    command = [
        "clang++",
        "-std=c++17",
        "-fsyntax-only",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
        "-DPYTHIA_ISA=any",
    ]
    if source.parent.name == "cuda" and source.name != "test.cc" or source.name == "cuda_emulated.cc":
        command += ["-DPYTHIA_CUDA", "-DPYTHIA_EMULATE_CUDA"]  # there may be no CUDA here
    sets = [[]]
    if platform.machine() in ("x86_64", "AMD64"):
        command.append("-DPYTHIA_X86")
        sets += (
            [["-mavx2", "-mfma", "-mf16c"], ["-mavx512f", "-mfma", "-mf16c"]]
            if source.name in ("cpu.cc", "half.cc")
            else []
        )
        if source.parent.name == "matmul_nbits" and source.name in ("cpu.cc", "amx.cc"):  # of these sets alone
            vnni = ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma"]
            emulated = [*vnni, "-DPYTHIA_EMULATE_TILES"]
            sets = [sets[1], vnni] if source.name == "cpu.cc" else [[*vnni, "-mamx-int8"], emulated]
    elif source.parent.name == "matmul_nbits" and source.name in ("cpu.cc", "amx.cc"):
        sets = [["-mcpu=generic+dotprod"]] if source.name == "cpu.cc" else []
    for flags in sets:
        ran = subprocess.run([*command, *flags, str(source)], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("aarch64-linux-gnu-g++") and shutil.which("qemu-aarch64")),
    reason="no compiler for or emulator of aarch64",
)
def test_neon_gives_the_same_under_an_emulator():
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", "-DCMAKE_EXE_LINKER_FLAGS=-static"]
    compiler = "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"
    build = native_tests(KERNELS.parent / "build" / "kernels-aarch64", *options, compiler)
    assert "ran: neon" in run_native(["qemu-aarch64", build / "rotary_attention_test"], 40)
    assert "ran: neon" in run_native(["qemu-aarch64", build / "partial_rotary_test"], 40)
    assert "ran: neon" in run_native(["qemu-aarch64", build / "beam_test"], 40)
    assert "ran: neon" in run_native(["qemu-aarch64", build / "draw_test"], 40)
    assert "ran: neondot" in run_native(["qemu-aarch64", build / "matmul_nbits_test"], 200)
    assert "ran: neondot" in run_native(["qemu-aarch64", build / "decoder_layers_test"], 40)


@needs_compiler
def test_our_declaration_of_the_abi_is_the_official_one(tmp_path):
    """Where the headers are: of `make consumers`, of Debian's libonnxruntime-dev, or a path in CPATH."""
    compile = ["g++", "-std=c++17", "-fsyntax-only", f"-I{KERNELS.parent / 'build' / 'consumers' / 'include'}"]
    places = ("onnxruntime/onnxruntime_c_api.h", "onnxruntime_c_api.h")
    finds = "#if __has_include(<{0}>)\n#include <{0}>\n#else\n#include <{1}>\n#endif\n".format(*places)
    (tmp_path / "has.cc").write_text(finds + "int main() {}")
    if subprocess.run([*compile, tmp_path / "has.cc"], capture_output=True).returncode:
        pytest.skip("no onnxruntime_c_api.h: make consumers")
    ours = (KERNELS / "ort_abi.h").read_text()
    functions = re.findall(r"X\((\w+), (\d+),", ours)
    fields = re.findall(r"\(\*(\w+)\)\(", ours.split("struct CustomOp {")[1].split("};")[0])
    assert len(functions) == 34 and len(fields) == 21
    checks = [
        f'static_assert(offsetof(OrtApi, {name}) == {place} * sizeof(void*), "{name}");' for name, place in functions
    ]
    checks += [f'static_assert(offsetof(OrtCustomOp, {f}) == offsetof(ort::CustomOp, {f}), "{f}");' for f in fields]
    for name, element in (
        ("kFloat", "FLOAT"),
        ("kUint8", "UINT8"),
        ("kInt8", "INT8"),
        ("kInt32", "INT32"),
        ("kInt64", "INT64"),
        ("kFloat16", "FLOAT16"),
        ("kBfloat16", "BFLOAT16"),
    ):
        checks.append(f'static_assert(int(ort::{name}) == int(ONNX_TENSOR_ELEMENT_DATA_TYPE_{element}), "");')
    checks.append('static_assert(int(ort::kInvalidArgument) == int(ORT_INVALID_ARGUMENT), "");')
    checks.append('static_assert(int(ort::kFail) == int(ORT_FAIL), "");')
    checks.append('static_assert(ORT_API_VERSION >= ort::kApiVersion, "");')
    checks.append('static_assert(int(ort::kOptional) == int(INPUT_OUTPUT_OPTIONAL), "");')
    checks.append('static_assert(int(ort::kCpuInput) == int(OrtMemTypeCPUInput), "");')
    include = f'#include "{KERNELS / "ort_abi.h"}"\n#include <cstddef>\n'
    (tmp_path / "abi.cc").write_text(finds + include + "\n".join(checks))
    ran = subprocess.run([*compile, tmp_path / "abi.cc"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="nm of ELF files")
def test_the_library_exports_its_entry_points_alone():
    if LIBRARY is None or not shutil.which("nm"):
        pytest.skip("no library or no nm")
    symbols = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True).stdout
    ours = [line.split()[-1] for line in symbols.splitlines() if " T " in line]
    assert sorted(ours) == ["RegisterCustomOps", "pythia_beam", "pythia_token", "pythia_version"]


SETS = ("avx2", "avx512", "product_avx2", "product_avx512vnni", "product_amx", "product_amx_emulated")


@needs_compiler
@pytest.mark.skipif(sys.platform != "linux", reason="nm of ELF files")
def test_what_is_compiled_for_one_processor_defines_nothing_that_another_could_be_given():
    """A linker keeps one of several inline functions of a name: none may come from files with AVX in them."""
    objects = [o for isa in SETS for o in (KERNELS.parent / "build/kernels").glob(f"**/{isa}.dir/**/*.o")]
    if not objects or not shutil.which("nm"):
        pytest.skip("no objects of a build in the checkout, or no nm")
    symbols = subprocess.run(["nm", "--defined-only", *objects], capture_output=True, text=True, check=True).stdout
    weak = [line for line in symbols.splitlines() if re.search(r" [WVu] ", line) and "DW.ref" not in line]
    assert weak == []
