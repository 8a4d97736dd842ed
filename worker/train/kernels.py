"""The engine's reference kernels (docs/numerics.md) on torch tensors, through the shared library `roost_train_kernels`.

Every function takes contiguous CPU tensors and allocates its results; where a first argument `x` or `gate` is a view, it is copied.
Work is split by rows or sequences over torch's number of threads, which changes no bit. A NaN or infinity raises FloatingPointError.
"""
import concurrent.futures
import ctypes
import os
import pathlib

import torch

LIBRARY = "libroost_train_kernels.so"
BUILD = pathlib.Path(__file__).resolve().parents[2] / "build"
ROWS_MIN = 256                # below this a part is not worth a thread
DIM_MAX = 512                 # of a head: TRAIN_DIM_MAX


class _Attention(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("q", "q_scale", "k", "v", "k_scale", "v_scale")]
    _fields_ += [(name, ctypes.c_size_t) for name in ("length", "heads", "kv_heads", "dim", "window")]
    _fields_ += [("attention_scale", ctypes.c_double), ("out", ctypes.c_void_p)]


def _find():
    named = os.environ.get("ROOST_BUILD_DIR")
    folders = [pathlib.Path(named)] if named else [BUILD / "release", BUILD / "dev"]
    for folder in folders:
        if (folder / "lib" / LIBRARY).exists():
            return folder / "lib" / LIBRARY
    raise SystemExit(f"{LIBRARY} is not in {', '.join(str(f / 'lib') for f in folders)}: "
                     "build roost first (cmake --preset dev && cmake --build --preset dev), or name the folder in ROOST_BUILD_DIR")


def _open(path):
    library = ctypes.CDLL(str(path))
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    signatures = {
        "train_quantize_rows": (ctypes.c_bool, pointer, size, size, pointer, pointer),
        "train_dequantize_rows": (None, pointer, pointer, size, size, pointer),
        "train_rmsnorm": (ctypes.c_bool, pointer, pointer, ctypes.c_float, size, size, pointer),
        "train_linear": (ctypes.c_bool, pointer, pointer, pointer, pointer, size, size, size, pointer),
        "train_rope_table": (None, ctypes.c_double, size, size, pointer, pointer),
        "train_rope_rows": (None, pointer, size, size, size, pointer, pointer),
        "train_silu_gate": (None, pointer, pointer, size),
        "train_attention": (ctypes.c_bool, ctypes.POINTER(_Attention)),
    }
    for name, (result, *arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.train_kernels_open.restype = ctypes.c_char_p
    isa = library.train_kernels_open()
    if isa is None:
        raise SystemExit("the reference kernels do not run on this machine")
    return library, isa.decode()


LIBRARY_PATH = _find()
_library, ISA = _open(LIBRARY_PATH)
_pool = concurrent.futures.ThreadPoolExecutor(64)


def _check(ok):
    if not ok:
        raise FloatingPointError("a NaN or infinity appeared in the forward pass (or memory is missing): a lower learning rate may help")


def _split(rows, work, rows_min=ROWS_MIN):
    """Runs work(first, count) over slices of the rows, in parallel; all must give True or None."""
    parts = max(1, min(torch.get_num_threads(), rows // rows_min))
    bounds = [rows * i // parts for i in range(parts + 1)]
    slices = [(a, b - a) for a, b in zip(bounds, bounds[1:])]
    if parts == 1:
        results = [work(0, rows)]
    else:
        results = list(_pool.map(lambda part: work(*part), slices))
    _check(all(result is not False for result in results))


def _expect(tensor, dtype, shape):
    """The library reads through pointers: what is not as it expects must not reach it."""
    if tensor.dtype != dtype or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise TypeError(f"the kernels take contiguous {dtype} tensors on the CPU, not {tensor.dtype} with strides {tensor.stride()} "
                        f"on {tensor.device}")
    if tensor.shape != torch.Size(shape):
        raise ValueError(f"shapes do not fit: {tuple(tensor.shape)} where the kernels expect {tuple(shape)}")


def _expect_rows(q, scale):
    _expect(q, torch.int8, q.shape)
    _expect(scale, torch.float32, q.shape[:-1])


def _flat(x):
    """x (..., n) float32 as rows."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    _expect(flat, torch.float32, flat.shape)
    return flat


def _at(tensor, row):
    """The address of a row (of all trailing dimensions)."""
    return tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size()


def quantize_rows(x):
    """x (..., n) float32 -> (int8 like x, scale (...)): dynamic rows over the last axis."""
    flat = _flat(x)
    q, scale = torch.empty(flat.shape, dtype=torch.int8), torch.empty(len(flat))
    _split(len(flat), lambda r, n: _library.train_quantize_rows(_at(flat, r), n, flat.shape[1], _at(q, r), _at(scale, r)))
    return q.view(x.shape), scale.view(x.shape[:-1])


def dequantize_rows(q, scale):
    """q (..., n), scale (...) -> float32 like q."""
    _expect_rows(q, scale)
    flat, out = q.reshape(-1, q.shape[-1]), torch.empty(q.shape)
    scales, rows = scale.reshape(-1), out.view(-1, q.shape[-1])
    _split(len(flat), lambda r, n: _library.train_dequantize_rows(_at(flat, r), _at(scales, r), n, flat.shape[1], _at(rows, r)))
    return out


def rmsnorm(x, weight, epsilon):
    """Over the last axis; weight (n)."""
    flat, out = _flat(x), torch.empty(x.shape)
    _expect(weight, torch.float32, x.shape[-1:])
    rows = out.view(-1, x.shape[-1])
    _split(len(flat), lambda r, n: _library.train_rmsnorm(_at(flat, r), weight.data_ptr(), epsilon, n, flat.shape[1], _at(rows, r)))
    return out


def linear(q, q_scale, w, w_scale):
    """q (rows, depth) int8, w (outputs, depth) int8 -> (rows, outputs) float32."""
    _expect_rows(q, q_scale)
    _expect_rows(w, w_scale)
    _expect(w, torch.int8, (len(w), q.shape[1]))
    out = torch.empty(len(q), len(w))
    _split(len(q), lambda r, n: _library.train_linear(_at(q, r), _at(q_scale, r), w.data_ptr(), w_scale.data_ptr(), n, len(w), w.shape[1],
                                                      _at(out, r)))
    return out


def rope_table(base, dim, count):
    """cosine, sine (count, dim / 2) of positions from 0."""
    if dim % 2 or not 2 <= dim <= DIM_MAX:
        raise ValueError(f"head_dim is even and at most {DIM_MAX}, not {dim}")
    cosine, sine = torch.empty(count, dim // 2), torch.empty(count, dim // 2)
    _library.train_rope_table(base, dim, count, cosine.data_ptr(), sine.data_ptr())
    return cosine, sine


def rope(x, cosine, sine):
    """x (sequences, length, heads, dim) rotated; cosine and sine have at least `length` rows."""
    out = x.clone(memory_format=torch.contiguous_format)
    _expect(out, torch.float32, x.shape)
    for table in (cosine, sine):
        _expect(table, torch.float32, (max(len(table), x.shape[1]), x.shape[3] // 2))
    for sequence in out:
        _library.train_rope_rows(sequence.data_ptr(), len(sequence), sequence.shape[1], sequence.shape[2], cosine.data_ptr(), sine.data_ptr())
    return out


def silu_gate(gate, up):
    """silu(gate) * up"""
    out = gate.clone(memory_format=torch.contiguous_format)
    _expect(out, torch.float32, gate.shape)
    _expect(up, torch.float32, gate.shape)
    _split(len(out), lambda r, n: _library.train_silu_gate(_at(out, r), _at(up, r), n * out.stride(0)))
    return out


def attention(q, k, v, window, scale):
    """q, k, v: pairs (int8 (sequences, length, heads, dim), scales (sequences, length, heads)); window 0 sees everything.
    Returns (sequences, length, heads, dim) float32."""
    out = torch.empty(q[0].shape)
    length, heads, dim = q[0].shape[1:]
    kv_heads = k[0].shape[2]
    if heads % kv_heads:
        raise ValueError(f"shapes do not fit: {heads} heads are no multiple of {kv_heads} KV heads")
    for rows in (q, k, v):
        _expect_rows(*rows)
    for rows in (k, v):
        _expect(rows[0], torch.int8, (len(out), length, kv_heads, dim))

    def run(first, count):
        ok = True
        for s in range(first, first + count):
            job = _Attention(_at(q[0], s), _at(q[1], s), _at(k[0], s), _at(v[0], s), _at(k[1], s), _at(v[1], s),
                             length, heads, kv_heads, dim, window, scale, _at(out, s))
            ok = ok and _library.train_attention(ctypes.byref(job))
        return ok

    _split(len(out), run, rows_min=1)
    return out
