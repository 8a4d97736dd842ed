/* backend_cuda_graph.c - decode steps as CUDA graphs. A step starts some ten kernels a layer, each a few microseconds of work: one launch of a
 * graph replaces the launches. A shape is captured when it comes for the second time; of GPU_GRAPHS_MAX shapes the one not used for longest goes. */
#include <string.h>
#include "common/log.h"
#include "worker/engine/backend/cuda/backend_cuda_internal.h"

static struct gpu_graph *find(struct gpu_graphs *graphs, const struct gpu_shape *shape)
{
    for (uint32_t i = 0; i < graphs->count; i++)
        if (memcmp(&graphs->entries[i].shape, shape, sizeof *shape) == 0)
            return &graphs->entries[i];
    return NULL;
}

static void drop(struct gpu_graph *graph)
{
    if (graph->exec)
        (void)cudaGraphExecDestroy(graph->exec);
    *graph = (struct gpu_graph){0};
}

static struct gpu_graph *add(struct gpu_graphs *graphs, const struct gpu_shape *shape)
{
    struct gpu_graph *oldest = &graphs->entries[0];
    if (graphs->count < GPU_GRAPHS_MAX) {
        oldest = &graphs->entries[graphs->count++];
    } else {
        for (uint32_t i = 1; i < graphs->count; i++)
            if (graphs->entries[i].used < oldest->used)
                oldest = &graphs->entries[i];
        drop(oldest);
    }
    oldest->shape = *shape;
    return oldest;
}

/* Nothing of the work has been done behind it. false: no graph came of it (no memory for one, say), and steps run without from now on, unless
 * the device is lost. */
static bool capture(struct backend *self, struct gpu_graph *graph, bool (*work)(struct backend *self))
{
    cudaGraph_t captured = NULL;
    cudaError_t error = cudaStreamBeginCapture(self->stream, cudaStreamCaptureModeThreadLocal);
    if (error == cudaSuccess) {
        const bool worked = work(self);
        error = cudaStreamEndCapture(self->stream, &captured);
        if (!worked) {
            if (captured)
                (void)cudaGraphDestroy(captured);
            return false;
        }
    }
    if (error == cudaSuccess)
        error = cudaGraphInstantiate(&graph->exec, captured, 0);
    if (captured)
        (void)cudaGraphDestroy(captured);
    if (error == cudaSuccess) {
        self->graphs.captured++;
        return true;
    }
    LOG_WARN("CUDA: steps run without graphs: %s", cudaGetErrorString(error));
    (void)cudaGetLastError();
    graph->exec = NULL;
    self->graphs.off = true;
    return false;
}

bool gpu_graph_run(struct backend *self, bool (*work)(struct backend *self))
{
    struct gpu_graphs *graphs = &self->graphs;
    struct gpu_graph *graph = find(graphs, &self->step.shape);
    const bool again = graph != NULL;
    if (graphs->off)
        return work(self);
    if (!again)
        graph = add(graphs, &self->step.shape);
    graph->used = ++graphs->step;
    if (!again)
        return work(self);
    if (!graph->exec && !capture(self, graph, work))
        return !self->lost && work(self);
    graphs->launches++;
    return gpu_did(self, cudaGraphLaunch(graph->exec, self->stream), "starting a graph");
}

void gpu_graph_forget(struct backend *self)
{
    for (uint32_t i = 0; i < self->graphs.count; i++)
        drop(&self->graphs.entries[i]);
    self->graphs.count = 0;
}
