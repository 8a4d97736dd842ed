/* stream.cc - streams as queues. Nothing runs when it is put in, but for a nudge now and then; a wait of the host runs heads of queues, drawn at
 * random among those whose own waits are over, until what it waits for is done. */
#include <string.h>
#include <time.h>
#include "tests/cuda_emulation/stream.h"

static auto &streams = *new std::vector<CUstream_st *>;        /* never freed: a destroyed stream still finishes its work */
static unsigned eagerness = 64;
order_clock &stream_host_clock = *new order_clock;

CUstream_st *stream_of(cudaStream_t stream)
{
    static CUstream_st *null_stream;
    if (stream != nullptr)
        return stream;
    if (null_stream == nullptr) {
        null_stream = new CUstream_st();
        null_stream->lane = order_lane_new();
        null_stream->blocking = true;
        streams.insert(streams.begin(), null_stream);
    }
    return null_stream;
}

bool stream_known(cudaStream_t stream)
{
    if (stream == nullptr)
        return true;
    for (CUstream_st *known : streams)
        if (known == stream)
            return !known->destroyed;
    return false;
}

void emulation_set_eagerness(unsigned of_256)
{
    eagerness = of_256;
}

bool stream_is_done(stream_point point)
{
    return point.stream == nullptr || point.stream->done >= point.number;
}

/* ---- running */

static void run_copy(const copy_job &job)
{
    const unsigned char *from = job.staged != nullptr ? job.staged->data() : job.from;
    size_t from_pitch = job.staged != nullptr ? job.width : job.from_pitch;
    for (size_t row = 0; row < job.height; row++) {
        unsigned char *to_row = job.to + row * job.to_pitch;
        const unsigned char *from_row = from == nullptr ? nullptr : from + row * from_pitch;
        if (from_row != nullptr && memory_in_device_range(from_row)) {
            if (memory_left(from_row) < job.width)
                emulation_fault("a copy reads %zu bytes at device address %p, where its allocation has %zu left", job.width,
                                static_cast<const void *>(from_row), memory_left(from_row));
            order_access(reinterpret_cast<uintptr_t>(from_row) - memory_device_base(), job.width, ACCESS_READ);
        }
        if (memory_in_device_range(to_row)) {
            if (memory_left(to_row) < job.width)
                emulation_fault("a copy or set writes %zu bytes at device address %p, where its allocation has %zu left", job.width,
                                static_cast<void *>(to_row), memory_left(to_row));
            order_access(reinterpret_cast<uintptr_t>(to_row) - memory_device_base(), job.width, ACCESS_WRITE);
        }
        if (from_row != nullptr)
            memmove(to_row, from_row, job.width);
        else
            memset(to_row, job.value, job.width);
    }
}

static void run_payload(const payload &work, uint32_t number, const order_clock *clock)
{
    order_run(number, clock);
    switch (work.kind) {
    case OPERATION_KERNEL:
        if (runtime_kernel_runs())
            block_run_all(*work.kernel);
        break;
    case OPERATION_COPY:
    case OPERATION_SET:
        run_copy(work.copy);
        break;
    case OPERATION_HOST:
        memory_close();                          /* it is host code */
        work.host(work.host_argument);
        memory_open();
        break;
    default:
        break;
    }
}

/* One node whose predecessors are done. */
static void run_graph_step(graph_run *run, const order_clock &clock)
{
    const std::vector<graph_node> &nodes = run->body->nodes;
    std::vector<unsigned> ready;
    for (unsigned i = 0; i < nodes.size(); i++) {
        bool free = !run->done[i];
        for (unsigned before : nodes[i].after)
            free = free && run->done[before];
        if (free)
            ready.push_back(i);
        if (ready.size() == 16)                  /* enough to choose from */
            break;
    }
    unsigned i = ready[emulation_draw.below(static_cast<uint32_t>(ready.size()))];
    order_clock mine = clock;
    for (unsigned before : nodes[i].after) {
        order_merge(mine, run->clocks[before]);
        order_note(mine, run->lanes[nodes[before].chain], run->numbers[before]);
    }
    run_payload(nodes[i].work, run->numbers[i], &mine);
    run->clocks[i] = std::move(mine);
    run->done[i] = true;
    run->left--;
}

static bool is_ready(const CUstream_st *stream)
{
    if (stream->queue.empty())
        return false;
    for (const stream_point &point : stream->queue.front().after)
        if (!stream_is_done(point))
            return false;
    return true;
}

static void run_head(CUstream_st *stream)
{
    operation &op = stream->queue.front();
    if (op.graph != nullptr && op.graph->left > 0) {
        run_graph_step(op.graph.get(), op.clock);
        if (runtime_poisoned() != cudaSuccess) {
            stream_drop();
            return;
        }
        if (op.graph->left > 0)
            return;
    } else if (op.record != nullptr) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        op.record->time_ms = static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) * 1e-6;
    } else {
        run_payload(op.work, op.number, &op.clock);
        if (runtime_poisoned() != cudaSuccess) {
            stream_drop();
            return;
        }
    }
    stream->done = op.number;
    stream->queue.pop_front();
}

static bool run_any()
{
    CUstream_st *ready[64];
    unsigned count = 0;
    for (CUstream_st *stream : streams)
        if (is_ready(stream)) {
            if (count < 64)
                ready[count] = stream;
            else if (unsigned i = emulation_draw.below(count + 1); i < 64)
                ready[i] = stream;
            count++;
        }
    if (count == 0)
        return false;
    run_head(ready[emulation_draw.below(count < 64 ? count : 64)]);
    return true;
}

cudaError_t stream_wait(const std::vector<stream_point> &points)
{
    memory_open();
    for (const stream_point &point : points)
        while (!stream_is_done(point) && runtime_poisoned() == cudaSuccess)
            if (!run_any())
                emulation_fault("the host waits for what can never happen");
    memory_close();
    return runtime_poisoned();
}

static void run_some(unsigned steps)
{
    if (emulation_inside)
        return;
    memory_open();
    while (steps-- > 0 && runtime_poisoned() == cudaSuccess && run_any())
        ;
    memory_close();
}

void stream_nudge()
{
    if (eagerness >= 256)
        run_some(~0u);
    else if (emulation_draw.below(256) < eagerness)
        run_some(1 + emulation_draw.below(3));
}

void stream_drain()
{
    run_some(~0u);
}

void stream_drop()
{
    for (CUstream_st *stream : streams) {
        stream->queue.clear();
        stream->done = stream->last;
    }
}

/* ---- putting in */

cudaError_t stream_put(CUstream_st *stream, operation &&op)
{
    if (runtime_poisoned() != cudaSuccess)
        return runtime_poisoned();
    CUstream_st *null_stream = stream_of(nullptr);
    if (stream == null_stream) {                 /* the legacy stream: behind every blocking stream, and they behind it */
        for (CUstream_st *other : streams)
            if (other->blocking && other != stream) {
                op.after.push_back({other, other->last});
                order_merge(stream->clock, other->clock);
            }
    } else if (stream->blocking) {
        op.after.push_back({null_stream, null_stream->last});
        order_merge(stream->clock, null_stream->clock);
    }
    order_merge(stream->clock, stream_host_clock);
    order_merge(stream->clock, op.clock);
    op.clock = stream->clock;
    op.number = order_operation_new(stream->lane, op.work.name);
    order_note(stream->clock, stream->lane, op.number);
    if (op.record != nullptr) {
        op.record->point = {stream, op.number};
        op.record->clock = stream->clock;
    }
    if (op.graph != nullptr) {
        graph_run *run = op.graph.get();
        for (size_t i = 0; i < run->body->nodes.size(); i++) {
            uint32_t lane = run->lanes[run->body->nodes[i].chain];
            run->numbers[i] = order_operation_new(lane, run->body->nodes[i].work.name);
            order_note(stream->clock, lane, run->numbers[i]);
        }
    }
    stream->last = op.number;
    stream->queue.push_back(std::move(op));
    stream_nudge();
    return cudaSuccess;
}

cudaError_t stream_put_work(CUstream_st *stream, payload &&work)
{
    if (stream->capture != nullptr) {
        graph_record(stream, std::move(work));
        return cudaSuccess;
    }
    operation op = {};
    op.work = std::move(work);
    return stream_put(stream, std::move(op));
}

cudaError_t stream_put_kernel(cudaStream_t handle, launch &&kernel)
{
    runtime_lock lock;
    if (runtime_poisoned() != cudaSuccess)
        return runtime_return(runtime_poisoned());
    if (!stream_known(handle))
        return runtime_return(cudaErrorInvalidResourceHandle);
    if (handle == nullptr && capture_forbids() != cudaSuccess)
        return runtime_return(cudaErrorStreamCaptureImplicit);
    if (runtime_launch_refused())
        return runtime_return(cudaErrorLaunchFailure);
    payload work = {};
    work.kind = OPERATION_KERNEL;
    work.name = kernel.name;
    work.kernel = std::make_shared<const launch>(std::move(kernel));
    return runtime_return(stream_put_work(stream_of(handle), std::move(work)));
}

/* ---- the runtime's calls */

#define ENTER()                                                                                                             \
    runtime_lock lock;                                                                                                      \
    if (runtime_poisoned() != cudaSuccess)                                                                                  \
        return runtime_return(runtime_poisoned())
#define KNOW(stream)                                                                                                        \
    if (!stream_known(stream))                                                                                              \
        return runtime_return(cudaErrorInvalidResourceHandle)

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *out, unsigned flags, int)
{
    ENTER();
    if (flags > cudaStreamNonBlocking)
        return runtime_return(cudaErrorInvalidValue);
    stream_of(nullptr);
    CUstream_st *stream = new CUstream_st();
    stream->lane = order_lane_new();
    stream->blocking = flags != cudaStreamNonBlocking;
    streams.push_back(stream);
    *out = stream;
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    return cudaStreamCreateWithPriority(out, flags, 0);
}

cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    return cudaStreamCreateWithPriority(out, cudaStreamDefault, 0);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    ENTER();
    if (stream == nullptr || !stream_known(stream))
        return runtime_return(cudaErrorInvalidResourceHandle);
    stream->destroyed = true;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t handle)
{
    ENTER();
    KNOW(handle);
    CUstream_st *stream = stream_of(handle);
    if (stream->capture != nullptr) {
        stream->capture->invalid = true;
        return runtime_return(cudaErrorStreamCaptureUnsupported);
    }
    cudaError_t error = stream_wait({{stream, stream->last}});
    order_merge(stream_host_clock, stream->clock);
    return runtime_return(error);
}

cudaError_t cudaStreamQuery(cudaStream_t handle)
{
    ENTER();
    KNOW(handle);
    CUstream_st *stream = stream_of(handle);
    run_some(1 + emulation_draw.below(2));
    if (runtime_poisoned() != cudaSuccess)
        return runtime_return(runtime_poisoned());
    if (!stream->queue.empty())
        return cudaErrorNotReady;
    order_merge(stream_host_clock, stream->clock);
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void)
{
    ENTER();
    if (capture_forbids() != cudaSuccess)
        return runtime_return(cudaErrorStreamCaptureUnsupported);
    std::vector<stream_point> points;
    for (CUstream_st *stream : streams)
        points.push_back({stream, stream->last});
    cudaError_t error = stream_wait(points);
    for (CUstream_st *stream : streams)
        order_merge(stream_host_clock, stream->clock);
    return runtime_return(error);
}

cudaError_t cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *argument)
{
    ENTER();
    KNOW(handle);
    payload work = {};
    work.kind = OPERATION_HOST;
    work.name = "a host function";
    work.host = function;
    work.host_argument = argument;
    return runtime_return(stream_put_work(stream_of(handle), std::move(work)));
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    ENTER();
    CUevent_st *event = new CUevent_st();
    event->timing = (flags & cudaEventDisableTiming) == 0;
    *out = event;
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    runtime_lock lock;
    if (event == nullptr)
        return runtime_return(cudaErrorInvalidResourceHandle);
    delete event;                     /* on a poisoned context too: leaks are looked for */
    return runtime_return(runtime_poisoned());
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle)
{
    ENTER();
    KNOW(handle);
    CUstream_st *stream = stream_of(handle);
    event->capture = stream->capture;
    if (stream->capture != nullptr) {
        event->record = nullptr;
        event->capture_tail = stream->capture_tail;
        return cudaSuccess;
    }
    operation op = {};
    op.work.kind = OPERATION_RECORD;
    op.work.name = "an event";
    op.record = std::make_shared<event_record>();
    event->record = op.record;
    return runtime_return(stream_put(stream, std::move(op)));
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    ENTER();
    if (event->capture != nullptr)
        return runtime_return(cudaErrorCapturedEvent);
    if (event->record == nullptr)
        return cudaSuccess;
    std::shared_ptr<event_record> record = event->record;
    cudaError_t error = stream_wait({record->point});
    order_merge(stream_host_clock, record->clock);
    return runtime_return(error);
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    ENTER();
    if (event->capture != nullptr)
        return runtime_return(cudaErrorCapturedEvent);
    if (event->record == nullptr)
        return cudaSuccess;
    run_some(1 + emulation_draw.below(2));
    if (runtime_poisoned() != cudaSuccess)
        return runtime_return(runtime_poisoned());
    if (!stream_is_done(event->record->point))
        return cudaErrorNotReady;
    order_merge(stream_host_clock, event->record->clock);
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    ENTER();
    if (start->record == nullptr || end->record == nullptr || !start->timing || !end->timing)
        return runtime_return(cudaErrorInvalidResourceHandle);
    if (!stream_is_done(start->record->point) || !stream_is_done(end->record->point))
        return cudaErrorNotReady;
    *milliseconds = static_cast<float>(end->record->time_ms - start->record->time_ms);
    return cudaSuccess;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned)
{
    ENTER();
    KNOW(handle);
    CUstream_st *stream = stream_of(handle);
    if (event->capture != nullptr && event->capture->ended)
        return runtime_return(cudaErrorCapturedEvent);
    if (event->capture != nullptr) {
        if (stream->capture == nullptr) {
            stream->capture = event->capture;
            stream->capture_chain = stream->capture->body.chains++;
            stream->capture_tail.clear();
            stream->capture->streams.push_back(stream);
        } else if (stream->capture != event->capture) {
            return runtime_return(cudaErrorStreamCaptureInvalidated);
        }
        stream->capture_tail.insert(stream->capture_tail.end(), event->capture_tail.begin(), event->capture_tail.end());
        return cudaSuccess;
    }
    if (stream->capture != nullptr) {            /* of work outside of the capture */
        stream->capture->invalid = true;
        return runtime_return(cudaErrorStreamCaptureInvalidated);
    }
    if (event->record == nullptr)
        return cudaSuccess;
    operation op = {};
    op.work.name = "a wait";
    op.after.push_back(event->record->point);
    op.clock = event->record->clock;
    return runtime_return(stream_put(stream, std::move(op)));
}
