/* model_describe.h - `roost model describe`: what a model directory holds and costs. */
#ifndef ROOST_DEPLOY_ROOST_MODEL_DESCRIBE_H
#define ROOST_DEPLOY_ROOST_MODEL_DESCRIBE_H

/* argv[0] is "describe"; returns enum command_exit. */
int model_describe(int argc, char **argv);

#endif
