"""PyTorch's scaled_dot_product_attention (bf16, whole tensors, not paged) for bench_attention.c's cases: lines "name<TAB>microseconds".
Run by tests/gpu/run where python3 has torch; keys and values rotate, so that they come from memory. Batches of one length only."""
import statistics
import sys

import torch
import torch.nn.functional as functional

SHAPES = [("16 over 1 of 128", 16, 1, 128), ("32 over 4 of 128", 32, 4, 128)]
CASES = [("decode, 1 of 4k", 1, 4096, 1), ("decode, 1 of 64k", 1, 65536, 1), ("decode, 1 of 256k", 1, 262144, 1), ("decode, 64 of 4k", 64, 4096, 1),
         ("prompt of 8k", 1, 8192, 8192)]
CACHE_BYTES = 160 << 20


def microseconds(heads, kv_heads, dim, batch, context, rows):
    def make(count, length):
        return torch.randn(batch, count, length, dim, device="cuda", dtype=torch.bfloat16)
    q = make(heads, rows)
    size = 2 * batch * kv_heads * context * dim * 2
    pairs = [(make(kv_heads, context), make(kv_heads, context)) for _ in range(max(1, min(32, CACHE_BYTES // size + 1)))]

    def run(i):
        k, v = pairs[i % len(pairs)]
        return functional.scaled_dot_product_attention(q, k, v, is_causal=rows > 1, enable_gqa=True)
    times = []
    for _ in range(3):
        run(0)
    for repeat in range(7):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for i in range(20):
            run(i + repeat)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) * 1e3 / 20)
    return statistics.median(times)


def main():
    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU")
    for shape, heads, kv_heads, dim in SHAPES:
        for case, batch, context, rows in CASES:
            print(f"{case}, {shape}\t{microseconds(heads, kv_heads, dim, batch, context, rows):.2f}", flush=True)


main()
