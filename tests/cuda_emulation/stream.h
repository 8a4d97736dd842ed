/* stream.h - operations, streams, events and graphs as stream.cc and graph.cc share them; see emulator.h. */
#ifndef ROOST_TESTS_CUDA_EMULATION_STREAM_H
#define ROOST_TESTS_CUDA_EMULATION_STREAM_H
#include <deque>
#include <memory>
#include "tests/cuda_emulation/emulator.h"

enum operation_kind { OPERATION_NONE, OPERATION_KERNEL, OPERATION_COPY, OPERATION_SET, OPERATION_HOST, OPERATION_RECORD, OPERATION_GRAPH };

struct copy_job {                                /* rows of bytes; of a set, `from` is NULL and `value` counts */
    unsigned char *to;
    const unsigned char *from;
    size_t to_pitch, from_pitch, width, height;
    std::shared_ptr<std::vector<unsigned char>> staged;      /* pageable source, as it was when the call was made */
    int value;
};

struct payload {
    operation_kind kind;
    std::shared_ptr<const launch> kernel;
    copy_job copy;
    cudaHostFn_t host;
    void *host_argument;
    const char *name;
};

struct graph_node {
    payload work;
    std::vector<unsigned> after;                 /* nodes */
    unsigned chain;
};

struct graph_body {
    std::vector<graph_node> nodes;               /* recorded order: a node comes after those it depends on */
    unsigned chains;
};

struct stream_point {                            /* `stream` has done its operation `number` */
    CUstream_st *stream;
    uint32_t number;
};

struct event_record {
    stream_point point;
    order_clock clock;
    double time_ms;
};

struct graph_run {
    std::shared_ptr<const graph_body> body;
    std::vector<uint32_t> lanes, numbers;        /* by chain; by node */
    std::vector<order_clock> clocks;             /* by node, once it is done */
    std::vector<bool> done;
    size_t left;
};

struct operation {
    payload work;
    uint32_t number;
    order_clock clock;                           /* what is done before it */
    std::vector<stream_point> after;
    std::shared_ptr<event_record> record;
    std::shared_ptr<graph_run> graph;
};

struct recording {                               /* a capture under way */
    CUstream_st *origin;
    std::vector<CUstream_st *> streams;
    graph_body body;
    enum cudaStreamCaptureMode mode;
    uint64_t host_thread;
    bool invalid, ended;
};

struct CUstream_st {
    uint32_t lane;
    std::deque<operation> queue;
    order_clock clock;                           /* of all that was put in */
    uint32_t last, done;                         /* operations */
    bool blocking, destroyed;
    std::shared_ptr<recording> capture;
    std::vector<unsigned> capture_tail;
    unsigned capture_chain;
};

struct CUevent_st {
    std::shared_ptr<event_record> record;        /* NULL: never recorded */
    std::shared_ptr<recording> capture;
    std::vector<unsigned> capture_tail;
    bool timing;
};

struct CUgraph_st {
    std::shared_ptr<const graph_body> body;
};

struct CUgraphExec_st {
    std::shared_ptr<const graph_body> body;
    std::vector<uint32_t> lanes;
    stream_point last;                           /* launches of one exec run one after another */
    order_clock clock;
};

bool stream_is_done(stream_point point);
cudaError_t stream_wait(const std::vector<stream_point> &points);
cudaError_t stream_put(CUstream_st *stream, operation &&op);           /* behind all of the stream; nudges */
cudaError_t stream_put_work(CUstream_st *stream, payload &&work);      /* or into the capture */
void graph_record(CUstream_st *stream, payload &&work);
cudaError_t capture_forbids();                   /* of calls that a capture does not allow: cudaSuccess if there is none; else it is spoilt */
extern order_clock &stream_host_clock;                   /* what the host knows to be done */

#endif
