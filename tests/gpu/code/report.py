#!/usr/bin/env python3
"""report.py BUILD [--write]: the table of docs/performance/gpu.md about registers, shared memory and occupancy, from the reports that ptxas left in
a build with the real kernels (preset dev or cuda), on standard output, or with --write in its place on the page."""
import pathlib
import re
import subprocess
import sys
import tempfile

import code_of_kernels as code

PAGE = code.SOURCE / "docs" / "performance" / "gpu.md"
BEGIN, END = "<!-- tests/gpu/code/report.py BUILD --write makes what follows -->\n", "<!-- end -->\n"

# Of a multiprocessor (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"): 64 Ki registers in four parts, 64 warps, 32 blocks
# on all three; shared memory in KiB. A warp's registers come in units of 256, shared memory in units of 128 bytes after 1 KiB a block of the system's.
SHARED_KIB = {"sm_80": 164, "sm_90a": 228, "sm_100": 228}


def blocks(architecture, threads, registers, shared):
    """Blocks that a multiprocessor holds, and what stands in the way of more."""
    warps = threads // 32
    limits = {
        "registers": 4 * (16384 // ((registers * 32 + 255) // 256 * 256)) // warps,
        "shared memory": SHARED_KIB[architecture] * 1024 // ((shared + 127) // 128 * 128 + 1024),
        "warps": 64 // warps,
        "blocks": 32,
    }
    least = min(limits.values())
    return least, next(name for name, limit in limits.items() if limit == least)


def gemm_small(tiles, strips, groups, _ahead, _blocks):
    columns, members, outputs = 8 * tiles, 8 // groups, groups * strips * 16
    return max(2 * columns * (64 // tiles * 64 + 16), members * columns * (outputs + 4) * 4)


def gemm_large(warps_m, warps_n, warp_outputs):
    return 4 * (warps_m * 64 * 64 + warps_n * warp_outputs // 16 * 1024)


def attention(warps_m, warps_n, dim):
    depth, pairs = 1 if dim > 256 else 2, 16 * warps_m
    return pairs * dim + depth * (2 * 64 * dim + 512) + (pairs * 64 + 12 * pairs * warps_n if warps_n > 1 else 0)


# The most dynamic shared memory of a launch, as the kernels' own arithmetic has it (LAUNCH in kernels/cuda); rows of 8,192, heads of 256.
SHARED = {
    "gemm_small": gemm_small, "gemm_large": gemm_large, "attention_tasks": attention, "attention_merge": 2048, "norm_rows": 512, "quantize_rows": 512,
    "gate_rows": 512 + 4 * 8192, "sample_rows": 5 * 32 * 8 + 16 + 4096 * 8, "q_rows": 4 * 4 * 256, "kv_rows": 4 * 4 * 256, "embed_rows": 0, "per_layer_rows": 0,
    "gather_rows": 0, "gemm_tile": 0, "join_rows": 0, "page_copy_prefix": 0, "page_load_slot": 0, "rope_table": 0,
}


def plain_name(symbol):
    """gemm_small<...>: kernel, its numbers, what to print."""
    full = subprocess.run(["c++filt", symbol], capture_output=True, text=True, check=True).stdout
    full = re.sub(r"\(.*", "", full.strip().removeprefix("void ")).replace("(anonymous namespace)::", "")
    kernel, shape = re.match(r"(\w+)(.*)", full).groups()
    inner = re.search(r"<\w+<([^<>]*)>", shape)
    numbers = [int(n) for n in re.findall(r"(\d+)u", inner.group(1))] if inner else []
    text = f"`{kernel}`" + (f" {', '.join(map(str, numbers))}" if numbers else "") + (" wide" if "true" in shape else "")
    return kernel, numbers, text


def shared_bytes(kernel, numbers):
    value = SHARED[kernel]
    return value if isinstance(value, int) else value(*numbers)


def rows(build):
    reports = code.build_reports(build)
    with tempfile.TemporaryDirectory() as folder:
        for file in code.kernel_files():
            out = pathlib.Path(folder) / f"{file}.ptx"
            code.compile_source(code.KERNELS / f"{file}.cu", "sm_90a", out)      # it has the most threads of a block
            for entry in code.read_ptx(out)[1]:
                kernel, numbers, text = plain_name(entry.symbol)
                used = [reports[file][entry.symbol, a] for a in code.ARCHITECTURES]
                shared = shared_bytes(kernel, numbers)
                held = [blocks(a, entry.threads, u.registers, shared) for a, u in zip(code.ARCHITECTURES, used)]
                warps = " / ".join(f"{100 * n * entry.threads // 2048} %" for n, _ in held)
                yield (f"| {text} | {entry.threads} | {' / '.join(str(u.registers) for u in used)} | {sum(u.stack + u.spilled for u in used)} | "
                       f"{shared / 1024:.1f} | {' / '.join(str(n) for n, _ in held)} | {warps} | {held[1][1]} |\n")


def main():
    version = re.search(r"release ([\d.]+)", subprocess.run([code.NVCC, "--version"], capture_output=True, text=True, check=True).stdout).group(1)
    table = (f"nvcc {version}; `sm_80` / `sm_90a` / `sm_100`.\n\n| kernel | threads | registers | stack and spilled bytes | shared memory, KiB | "
             "blocks a multiprocessor | warps of 64 | limit (`sm_90a`) |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n" + "".join(rows(sys.argv[1])))
    if "--write" not in sys.argv:
        print(table, end="")
        return
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
