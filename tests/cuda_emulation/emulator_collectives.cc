/* emulator_collectives.cc - what the lanes of a warp do together, against plain loops. */
#include <string.h>
#include "kernels/cuda/device.h"
#include "kernels/cuda/kernels_cuda.h"
#include "tests/cuda_emulation/device_words.h"
#include "tests/cuda_emulation/emulator_faults.h"

namespace {

ENTRY(32) all_lanes(const uint32_t *in, uint32_t *out)
{
    uint32_t lane = lane_index(), v = in[lane], *o = out + lane;
    o[0] = shuffle_xor(v, 5);
    o[32] = shuffle_down(v, 7);
    o[64] = shuffle_from(v, v % 32);
    o[96] = vote_ballot(v & 1u);
    o[128] = vote_any(v % 64 == 0);
    o[160] = vote_all(v % 64 != 1);
    o[192] = warp_sum(v);
    o[224] = static_cast<uint32_t>(warp_min(static_cast<int32_t>(v)));
    o[256] = warp_max(v);
    o[288] = float_bits(shuffle_xor(float_from_bits(v & 0x7f7fffffu), 16));
    o[320] = sync_block_any(v % 97 == 0);
    o[352] = byte_permute(v, ~v, in[(lane + 1) % 32] & 0x7777u);
    o[384] = atomic_max(&out[416], v % 1000) < 1000;
}

/* a: 16 rows of 32 bytes; b: 8 columns of 32 bytes, one behind the other. */
ENTRY(32) product(const uint32_t *in, uint32_t *out)
{
    uint32_t *s = shared<uint32_t>(0), lane = lane_index();
    for (uint32_t i = lane; i < 192; i += 32)
        s[i] = in[i];
    sync_warp();
    uint32_t a[4], b[2];
    int32_t d[2][4] = {};
    ldmatrix_x4(a, s + 8 * (lane % 16) + 4 * (lane / 16));
    ldmatrix_x2(b, s + 128 + 8 * (lane % 8) + 4 * (lane / 8 % 2));
    mma_s8(d[0], a, b);
    mma_u8s8(d[1], a, b);
    for (uint32_t k = 0; k < 2; k++)
        for (uint32_t i = 0; i < 4; i++)
            out[128 * k + 8 * (lane / 4 + i / 2 * 8) + 2 * (lane % 4) + i % 2] = static_cast<uint32_t>(d[k][i]);
    ldmatrix_x2_trans(b, s + 8 * (lane % 16));
    out[256 + 2 * lane] = b[0];
    out[257 + 2 * lane] = b[1];
}

} // namespace

bool emulator_product_agrees(uint64_t seed)
{
    device_words in(192), out(320);
    uint32_t v[192], o[320];
    for (uint32_t i = 0; i < 192; i++)
        v[i] = static_cast<uint32_t>((seed + i) * 0x9E3779B97F4A7C15u >> 32);
    in.put(v);
    if (!LAUNCH(product, 1, 32, 192 * 4, nullptr, in.p, out.p))
        return false;
    out.get(o);
    int8_t bytes[192 * 4];
    uint16_t halves[192 * 2];
    memcpy(bytes, v, sizeof v);
    memcpy(halves, v, sizeof v);
    bool ok = true;
    for (uint32_t row = 0; row < 16; row++)
        for (uint32_t column = 0; column < 8; column++) {
            int32_t s8 = 0, u8 = 0;
            for (uint32_t k = 0; k < 32; k++) {
                s8 += bytes[32 * row + k] * bytes[512 + 32 * column + k];
                u8 += static_cast<uint8_t>(bytes[32 * row + k]) * bytes[512 + 32 * column + k];
            }
            ok = ok && o[8 * row + column] == static_cast<uint32_t>(s8) && o[128 + 8 * row + column] == static_cast<uint32_t>(u8);
        }
    for (uint32_t lane = 0; lane < 32; lane++)       /* lane 4 g + t of a transposed 8 x 8: column g, rows 2 t and 2 t + 1 */
        for (uint32_t m = 0; m < 2; m++)
            for (uint32_t i = 0; i < 2; i++)
                ok = ok && static_cast<uint16_t>(o[256 + 2 * lane + m] >> (16 * i)) == halves[16 * (8 * m + 2 * (lane % 4) + i) + lane / 4];
    return ok;
}

bool emulator_lanes_agree(uint64_t seed)
{
    device_words in(32), out(417);
    uint32_t v[32], o[417] = {};
    for (uint32_t i = 0; i < 32; i++)
        v[i] = static_cast<uint32_t>((seed + i) * 0x9E3779B97F4A7C15u >> 31);
    in.put(v);
    out.put(o);
    if (!LAUNCH(all_lanes, 1, 32, 0, nullptr, in.p, out.p))
        return false;
    out.get(o);
    uint32_t ballot = 0, sum = 0, most = 0, most_short = 0;
    int32_t least = INT32_MAX;
    bool any = false, all = true, any_97 = false, ok = true;
    for (uint32_t i = 0; i < 32; i++) {
        ballot |= (v[i] & 1u) << i;
        sum += v[i];
        least = static_cast<int32_t>(v[i]) < least ? static_cast<int32_t>(v[i]) : least;
        most = v[i] > most ? v[i] : most;
        most_short = v[i] % 1000 > most_short ? v[i] % 1000 : most_short;
        any |= v[i] % 64 == 0;
        all &= v[i] % 64 != 1;
        any_97 |= v[i] % 97 == 0;
    }
    for (uint32_t i = 0; i < 32; i++) {
        uint8_t bytes[8];
        uint32_t other = ~v[i], permuted = 0;
        memcpy(bytes, &v[i], 4);
        memcpy(bytes + 4, &other, 4);
        for (uint32_t k = 0; k < 4; k++)
            permuted |= uint32_t(bytes[v[(i + 1) % 32] >> (4 * k) & 7u]) << (8 * k);
        const uint32_t expected[13] = {v[i ^ 5], i + 7 < 32 ? v[i + 7] : v[i], v[v[i] % 32], ballot, any, all, sum, static_cast<uint32_t>(least), most,
                                       v[i ^ 16] & 0x7f7fffffu, any_97, permuted, 1};
        for (uint32_t k = 0; k < 13; k++)
            ok = ok && o[32 * k + i] == expected[k];
    }
    return ok && o[416] == most_short;
}
