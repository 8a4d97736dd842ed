/* model_eval.h - `roost model eval`: how well a model directory predicts a text. */
#ifndef ROOST_DEPLOY_ROOST_MODEL_EVAL_H
#define ROOST_DEPLOY_ROOST_MODEL_EVAL_H

/* argv[0] is "eval"; returns enum command_exit. */
int model_eval(int argc, char **argv);

#endif
