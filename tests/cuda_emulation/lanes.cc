/* lanes.cc - what a warp collective gives its 32 lanes. Fragment layouts after the PTX ISA: "Matrix fragments for mma.m16n8k32" (s8, u8) and
 * "Warp-level matrix load instruction: ldmatrix"; written from the elements' rows and columns there, not from a kernel's use of them. */
#include <string.h>
#include "tests/cuda_emulation/emulator.h"

const char *lanes_name(emulation_lane_op op)
{
    static const char *const names[] = {
        "sync_warp", "shuffle_xor", "shuffle_down", "shuffle_from", "a vote", "warp_sum", "warp_sum", "warp_min", "warp_min", "warp_max", "warp_max",
        "ldmatrix_x4", "ldmatrix_x2", "ldmatrix_x4_trans", "ldmatrix_x2_trans", "mma_s8", "mma_u8s8",
    };
    return names[op];
}

static uint32_t fold(emulation_lane_op op, uint32_t a, uint32_t b)
{
    int32_t sa = static_cast<int32_t>(a), sb = static_cast<int32_t>(b);
    switch (op) {
    case EMULATION_MIN_U32: return a < b ? a : b;
    case EMULATION_MIN_S32: return sa < sb ? a : b;
    case EMULATION_MAX_U32: return a > b ? a : b;
    case EMULATION_MAX_S32: return sa > sb ? a : b;
    default: return a + b;
    }
}

/* Matrix m's row j is 16 bytes at lane 8 m + j's address. Lane l gets of each matrix the elements of 16 bits (l / 4, 2 (l % 4)) and the next of
 * the row; transposed, (2 (l % 4), l / 4) and the one a row below. */
static void load_matrices(lane_call *const lanes[WARP_THREADS], unsigned count, bool transposed, unsigned first_thread)
{
    uint16_t element[4][8][8];
    for (unsigned i = 0; i < count * 8; i++) {
        shadow_access_shared(lanes[i]->a, 16, ACCESS_READ, first_thread + i);
        memcpy(element[i / 8][i % 8], lanes[i]->a, 16);
    }
    for (unsigned lane = 0; lane < WARP_THREADS; lane++)
        for (unsigned m = 0; m < count; m++) {
            unsigned group = lane / 4, two = 2 * (lane % 4);
            uint16_t low = transposed ? element[m][two][group] : element[m][group][two];
            uint16_t high = transposed ? element[m][two + 1][group] : element[m][group][two + 1];
            lanes[lane]->d[m] = uint32_t(high) << 16 | low;
        }
}

/* Element i of a lane's fragment is byte i % 4 of register i / 4. A, element i: row g, or g + 8 for i in 4..7 and 12..15; column 4 t + i % 4, and
 * 16 more from i = 8 on. B: row 4 t + i % 4, and 16 more from i = 4 on; column g. So the bytes of a register lie side by side. */
static void multiply(lane_call *const lanes[WARP_THREADS], bool a_unsigned)
{
    int8_t a_bytes[16][32], b_bytes[8][32];      /* b by columns */
    for (unsigned lane = 0; lane < WARP_THREADS; lane++) {
        unsigned g = lane >> 2, t = lane % 4;
        for (unsigned i = 0; i < 16; i += 4)
            memcpy(&a_bytes[i == 4 || i == 12 ? g + 8 : g][4 * t + (i < 8 ? 0 : 16)], &lanes[lane]->a[i / 4], 4);
        for (unsigned i = 0; i < 8; i += 4)
            memcpy(&b_bytes[g][4 * t + (i < 4 ? 0 : 16)], &lanes[lane]->b[i / 4], 4);
    }
    int16_t a[16][32], b[8][32];
    for (unsigned i = 0; i < 16 * 32; i++)
        a[i / 32][i % 32] = static_cast<int16_t>(a_unsigned ? a_bytes[i / 32][i % 32] & 0xff : a_bytes[i / 32][i % 32]);
    for (unsigned i = 0; i < 8 * 32; i++)
        b[i / 32][i % 32] = b_bytes[i / 32][i % 32];
    for (unsigned lane = 0; lane < WARP_THREADS; lane++)
        for (unsigned i = 0; i < 4; i++) {
            const int16_t *row = a[i < 2 ? lane >> 2 : (lane >> 2) + 8], *column = b[(lane % 4) * 2 + (i & 1)];
            int32_t sum = 0;
            for (unsigned k = 0; k < 32; k++)
                sum += row[k] * column[k];
            lanes[lane]->d[i] += static_cast<uint32_t>(sum);
        }
}

void lanes_compute(emulation_lane_op op, lane_call *const lanes[WARP_THREADS], unsigned first_thread)
{
    uint32_t all = 0;
    switch (op) {
    case EMULATION_SYNC_WARP:
        return;
    case EMULATION_SHUFFLE_XOR:
    case EMULATION_SHUFFLE_DOWN:
    case EMULATION_SHUFFLE_FROM:
        for (unsigned lane = 0; lane < WARP_THREADS; lane++) {
            uint32_t other = lanes[lane]->other;
            uint32_t from = op == EMULATION_SHUFFLE_XOR ? lane ^ other : op == EMULATION_SHUFFLE_DOWN ? lane + other : other % WARP_THREADS;
            if (other >= WARP_THREADS)
                emulation_fault("%s by %u: lanes are 0 to 31", lanes_name(op), other);
            lanes[lane]->result = lanes[from < WARP_THREADS ? from : lane]->value;
        }
        return;
    case EMULATION_LDMATRIX_X4: load_matrices(lanes, 4, false, first_thread); return;
    case EMULATION_LDMATRIX_X2: load_matrices(lanes, 2, false, first_thread); return;
    case EMULATION_LDMATRIX_X4_TRANS: load_matrices(lanes, 4, true, first_thread); return;
    case EMULATION_LDMATRIX_X2_TRANS: load_matrices(lanes, 2, true, first_thread); return;
    case EMULATION_MMA_S8: multiply(lanes, false); return;
    case EMULATION_MMA_U8S8: multiply(lanes, true); return;
    case EMULATION_BALLOT:
        for (unsigned lane = 0; lane < WARP_THREADS; lane++)
            all |= (lanes[lane]->value & 1u) << lane;
        break;
    default:
        all = lanes[0]->value;
        for (unsigned lane = 1; lane < WARP_THREADS; lane++)
            all = fold(op, all, lanes[lane]->value);
        break;
    }
    for (unsigned lane = 0; lane < WARP_THREADS; lane++)
        lanes[lane]->result = all;
}
