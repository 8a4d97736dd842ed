/* graph.cc - captures and graphs. A node keeps its launch's arguments by value; edges come from streams and events. Replayed in some order that
 * the edges allow (stream.cc). */
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "tests/cuda_emulation/stream.h"

static auto &recordings = *new std::vector<std::shared_ptr<recording>>;

static uint64_t host_thread()
{
    return static_cast<uint64_t>(syscall(SYS_gettid));
}

cudaError_t capture_forbids()
{
    for (const std::shared_ptr<recording> &capture : recordings)
        if (capture->mode == cudaStreamCaptureModeGlobal ||
            (capture->mode == cudaStreamCaptureModeThreadLocal && capture->host_thread == host_thread())) {
            capture->invalid = true;
            return cudaErrorStreamCaptureUnsupported;
        }
    return cudaSuccess;
}

void graph_record(CUstream_st *stream, payload &&work)
{
    graph_body *body = &stream->capture->body;
    body->nodes.push_back({std::move(work), stream->capture_tail, stream->capture_chain});
    stream->capture_tail.assign(1, static_cast<unsigned>(body->nodes.size() - 1));
}

#define ENTER()                                                                                                             \
    runtime_lock lock;                                                                                                      \
    if (runtime_poisoned() != cudaSuccess)                                                                                  \
        return runtime_return(runtime_poisoned())

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    ENTER();
    if (stream == nullptr || !stream_known(stream) || stream->capture != nullptr)
        return runtime_return(stream == nullptr ? cudaErrorStreamCaptureUnsupported : cudaErrorInvalidValue);
    std::shared_ptr<recording> capture = std::make_shared<recording>();
    capture->origin = stream;
    capture->streams.push_back(stream);
    capture->body.chains = 1;
    capture->mode = mode;
    capture->host_thread = host_thread();
    recordings.push_back(capture);
    stream->capture = capture;
    stream->capture_chain = 0;
    stream->capture_tail.clear();
    return cudaSuccess;
}

/* Is every node before one of `tail`? Edges point to lower indices. */
static bool all_joined(const graph_body &body, const std::vector<unsigned> &tail)
{
    std::vector<bool> reached(body.nodes.size());
    for (unsigned i : tail)
        reached[i] = true;
    for (size_t i = body.nodes.size(); i-- > 0;) {
        if (!reached[i])
            return false;
        for (unsigned before : body.nodes[i].after)
            reached[before] = true;
    }
    return true;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    ENTER();
    *graph = nullptr;
    if (stream == nullptr || !stream_known(stream) || stream->capture == nullptr || stream->capture->origin != stream)
        return runtime_return(cudaErrorStreamCaptureUnmatched);
    std::shared_ptr<recording> capture = stream->capture;
    capture->ended = true;
    bool joined = all_joined(capture->body, stream->capture_tail);
    for (CUstream_st *other : capture->streams)
        other->capture = nullptr;
    for (size_t i = 0; i < recordings.size(); i++)
        if (recordings[i] == capture) {
            recordings.erase(recordings.begin() + static_cast<ptrdiff_t>(i));
            break;
        }
    if (capture->invalid)
        return runtime_return(cudaErrorStreamCaptureInvalidated);
    if (!joined)
        return runtime_return(cudaErrorStreamCaptureUnjoined);
    emulation_count.graphs++;
    *graph = new CUgraph_st{std::make_shared<const graph_body>(std::move(capture->body))};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    ENTER();
    if (!stream_known(stream))
        return runtime_return(cudaErrorInvalidResourceHandle);
    const recording *capture = stream_of(stream)->capture.get();
    *status = capture == nullptr ? cudaStreamCaptureStatusNone : capture->invalid ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *count)
{
    ENTER();
    if (nodes != nullptr)                        /* nodes have no handles here */
        return runtime_return(cudaErrorNotSupported);
    *count = graph->body->nodes.size();
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long)
{
    ENTER();
    CUgraphExec_st *made = new CUgraphExec_st();
    made->body = graph->body;
    for (unsigned i = 0; i < graph->body->chains; i++)
        made->lanes.push_back(order_lane_new());
    emulation_count.graphs++;
    *exec = made;
    return cudaSuccess;
}

static bool same_shape(const graph_body &a, const graph_body &b)
{
    if (a.nodes.size() != b.nodes.size() || a.chains != b.chains)
        return false;
    for (size_t i = 0; i < a.nodes.size(); i++) {
        const payload &x = a.nodes[i].work, &y = b.nodes[i].work;
        if (x.kind != y.kind || a.nodes[i].after != b.nodes[i].after || a.nodes[i].chain != b.nodes[i].chain ||
            (x.kind == OPERATION_KERNEL && x.kernel->call != y.kernel->call))
            return false;
    }
    return true;
}

cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t graph, cudaGraphExecUpdateResultInfo *info)
{
    ENTER();
    bool same = same_shape(*exec->body, *graph->body);
    if (info != nullptr)
        *info = {same ? 0 : 1, nullptr, nullptr};
    if (!same)
        return runtime_return(cudaErrorGraphExecUpdateFailure);
    exec->body = graph->body;
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t stream)
{
    ENTER();
    return runtime_return(stream_known(stream) ? cudaSuccess : cudaErrorInvalidResourceHandle);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t handle)
{
    ENTER();
    if (!stream_known(handle))
        return runtime_return(cudaErrorInvalidResourceHandle);
    CUstream_st *stream = stream_of(handle);
    if (stream->capture != nullptr) {
        stream->capture->invalid = true;
        return runtime_return(cudaErrorStreamCaptureUnsupported);
    }
    operation op = {};
    op.work.kind = OPERATION_GRAPH;
    op.work.name = "a graph";
    op.graph = std::make_shared<graph_run>();
    size_t count = exec->body->nodes.size();
    *op.graph = {exec->body, exec->lanes, std::vector<uint32_t>(count), std::vector<order_clock>(count), std::vector<bool>(count), count};
    op.after.push_back(exec->last);
    op.clock = exec->clock;
    cudaError_t error = stream_put(stream, std::move(op));
    exec->last = {stream, stream->last};
    exec->clock = stream->clock;
    return runtime_return(error);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec)
{
    runtime_lock lock;
    emulation_count.graphs -= exec != nullptr;          /* on a poisoned context too: leaks are looked for */
    delete exec;
    return runtime_return(runtime_poisoned());
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    runtime_lock lock;
    emulation_count.graphs -= graph != nullptr;
    delete graph;
    return runtime_return(runtime_poisoned());
}
