"""The code that nvcc generates holds what the kernels' speed and bits rest on. There is no disassembler: PTX, and ptxas' reports of the build.

The rules are tried on planted faults too: a rule that nothing breaks proves nothing."""
import os
import re

import pytest

import code_of_kernels as code

MMA_S8, MMA_U8 = r"mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.s8\.s8\.s32", r"mma\.sync\.aligned\.m16n8k32\.row\.col\.s32\.u8\.s8\.s32"
LDMATRIX, COPY_16 = r"ldmatrix\.sync\.aligned\.m8n8\.x4\.shared\.b16", r"cp\.async\.cg\.shared\.global\S* \[.*\], \[.*\], 16,"
LOAD_16 = r"ld\.global\.nc\S*\.v4\.[ub]32"
NARROW_LOAD = r"ld\.global\S*\.[sub](8|16)\b"

# Of each hot file: what lies in loops of every kernel, and what does not lie in the smallest loop with products.
HOT = {
    "gemm_small": ([MMA_S8, LDMATRIX, LOAD_16, COPY_16], r"ld\.global(?!\S*\.v4)|mul\.wide\.s8|dp4a"),
    "gemm_large": ([MMA_S8, LDMATRIX, r"ld\.shared\.v4\.[ub]32", COPY_16], r"ld\.global"),
    "attention_decode": ([MMA_S8, MMA_U8, LDMATRIX, COPY_16], NARROW_LOAD),
    "attention_prefill": ([MMA_S8, MMA_U8, LDMATRIX, COPY_16], NARROW_LOAD),
}
ARCHITECTURES = ("sm_80", "sm_90a")


def missing_instructions(file, entries):
    wanted, unwanted = HOT[file]
    faults = [f"{entry.symbol}: no loop has {pattern}" for entry in entries for pattern in wanted if not entry.looped(pattern)]
    for entry in entries:
        loop = entry.innermost(MMA_S8)
        faults += [f"{entry.symbol}: {i.text} among the products" for i in (entry.matching(unwanted, loop) if loop else [])]
    return faults


def local_memory(entries):
    return [f"{entry.symbol}: {entry.local_bytes} bytes of local memory" for entry in entries if entry.local_bytes]


def source_line(place):
    return place[0].read_text().splitlines()[place[1] - 1] if place else ""


def loose_floats(entries):
    """docs/numerics.md, section 1: every operation rounds by itself, and fma is where the source says so."""
    faults = []
    for entry in entries:
        for i in entry.instructions:
            if re.match(r"fma\.", i.name) and "__fmaf_rn" not in source_line(i.place):
                faults.append(f"{entry.symbol}: {i.text} of {i.place}: {source_line(i.place).strip()}")
            elif re.search(r"\.ftz|\.approx|\.full", i.name) or re.match(r"(add|sub|mul|mad|div|sqrt|rcp)\.(f32|f64)", i.name):
                faults.append(f"{entry.symbol}: {i.text} rounds as ptxas likes")
            elif re.match(r"mad\.\w*\.?f(32|64)|(ex2|lg2|sin|cos|rsqrt|tanh)\.", i.name):
                faults.append(f"{entry.symbol}: {i.text}")
    return faults


def spills(resources):
    return [f"{symbol} for {architecture}: stack {r.stack}, spilled {r.spilled}" for (symbol, architecture), r in resources.items()
            if r.stack or r.spilled]


@pytest.fixture(scope="module", name="ptx")
def compiled(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("ptx"), {}

    def entries(file, architecture):
        if (file, architecture) not in made:
            out = folder / f"{file}.{architecture}.ptx"
            code.compile_source(code.KERNELS / f"{file}.cu", architecture, out)
            made[file, architecture] = code.read_ptx(out)[1]
            assert made[file, architecture], f"{file}: no kernel"
        return made[file, architecture]
    return entries


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("file", HOT)
def test_hot_kernels_hold_the_instructions_meant(ptx, file, architecture):
    entries = ptx(file, architecture)
    assert missing_instructions(file, entries) == []
    assert local_memory(entries) == []


@pytest.mark.parametrize("file", code.kernel_files())
def test_floats_round_as_written(ptx, file):
    for architecture in ARCHITECTURES if file in HOT else ARCHITECTURES[-1:]:
        assert loose_floats(ptx(file, architecture)) == []


def test_no_kernel_spills_on_any_architecture():
    reports = code.build_reports(os.environ["ROOST_BUILD_DIR"])
    assert set(code.kernel_files()) <= set(reports), "not every kernel has a report: build roost_kernels_cuda"
    for file in code.kernel_files():
        by_architecture = {a: {symbol for symbol, other in reports[file] if other == a} for a in code.ARCHITECTURES}
        assert by_architecture["sm_80"], f"{file}: no kernel in its report"
        assert len({frozenset(symbols) for symbols in by_architecture.values()}) == 1, by_architecture
        assert spills(reports[file]) == []


# ---- planted faults

def planted(tmp_path, *changes):
    """gemm_small.cu with every `old` replaced by its `new`, elsewhere."""
    text = (code.KERNELS / "gemm_small.cu").read_text()
    for old, new in changes:
        assert old in text, f"gemm_small.cu no longer has: {old}"
        text = text.replace(old, new)
    (tmp_path / "gemm_small.cu").write_text(text)
    return tmp_path / "gemm_small.cu"


def planted_ptx(tmp_path, *changes):
    code.compile_source(planted(tmp_path, *changes), "sm_80", tmp_path / "planted.ptx")
    return code.read_ptx(tmp_path / "planted.ptx")[1]


def test_a_local_array_is_noticed(tmp_path):
    assert local_memory(planted_ptx(tmp_path, ("    const uint32_t g = lane / 4, t = lane % 4;\n", "    volatile uint32_t kept[8];\n    kept[lane % 8] = lane;\n"
                                               "    const uint32_t g = kept[lane % 8] / 4, t = lane % 4;\n")))


def test_a_contraction_is_noticed(tmp_path):
    out = tmp_path / "gate.ptx"
    code.compile_source(code.KERNELS / "gate.cu", "sm_80", out, ["-fmad=true" if flag == "-fmad=false" else flag for flag in code.FLAGS])
    assert any("fma" in fault for fault in loose_floats(code.read_ptx(out)[1]))


def test_flushed_denormals_and_rough_division_are_noticed(tmp_path):
    for flag in ("-ftz=true", "-prec-div=false"):
        out = tmp_path / "gate.ptx"
        code.compile_source(code.KERNELS / "gate.cu", "sm_80", out, [*code.FLAGS, flag])
        assert loose_floats(code.read_ptx(out)[1]), flag


def test_missing_products_and_narrow_loads_are_noticed(tmp_path):
    faults = missing_instructions("gemm_small", planted_ptx(tmp_path, ("mma_s8(acc[i][j], w[i][", "(void)(w[i][")))
    assert any("no loop has mma" in fault for fault in faults)
    by_words = "DEVICE u32x4 by_words(const int8_t *p)\n{\n    const uint32_t *w = reinterpret_cast<const uint32_t *>(p);\n" \
               "    return u32x4{{w[0], w[1], w[2], w[3]}};\n}\n\n"
    fetch = "template <typename CUT> DEVICE void gemm_fetch("
    faults = missing_instructions("gemm_small", planted_ptx(tmp_path, (fetch, by_words + fetch), ("load_16_once(", "by_words(")))
    assert any("no loop has ld" in fault for fault in faults) and any("among the products" in fault for fault in faults)


def test_spills_are_noticed(tmp_path):
    """Four blocks of 256 threads leave a thread 64 registers; the kernel's largest cut has 128 sums alone."""
    source = planted(tmp_path, ("ENTRY_BLOCKS(GEMM_THREADS, CUT::blocks)", "ENTRY_BLOCKS(GEMM_THREADS, 4)"))
    assert spills(code.read_report(code.compile_source(source, "sm_80", tmp_path / "planted.o", ptx=False)))
