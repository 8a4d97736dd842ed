/* recipe.h - how each matrix's input rows are made int8, and whether norms are smoothed.
 *
 * A recipe file is JSON:
 *   {"default": "rotated",                     scheme of matrices that no entry matches; where rotated does not fit (columns not a
 *                                              multiple of 128) it falls back to dynamic. Absent: as the family's recipe
 *    "smooth": true,                           absent: true for int8, false for float
 *    "tensors": [{"match": "*.mlp.down_proj.weight", "scheme": "wide"},
 *                {"match": "model.layers.0.mlp.gate_proj.weight", "scheme": "static", "input_scale": 0.05}]}
 * Patterns are shell globs over the tensor's whole name; the first match wins. Absent "tensors": the family's entries. A pattern that
 * matches no matrix, an unknown key or scheme is an error with its place. */
#ifndef ROOST_WORKER_CONVERT_RECIPE_H
#define ROOST_WORKER_CONVERT_RECIPE_H
#include <stdbool.h>
#include <stdio.h>
#include "common/status.h"
#include "worker/convert/family.h"
#include "worker/convert/tensor_list.h"
#include "worker/engine/model/model.h"

#define RECIPE_ENTRIES_MAX 4096u

struct recipe_entry {
    char *match;                     /* owned */
    enum model_scheme scheme;
    float input_scale;               /* static: given, or 0: to be calibrated */
};

struct recipe {
    enum model_scheme scheme;        /* default */
    bool smooth;
    struct recipe_entry *entries;    /* (entry_count), owned */
    unsigned entry_count;
};

struct recipe_choice {               /* for one tensor */
    enum model_scheme scheme;
    float input_scale;
};

/* The family's default; smooth: where nothing says otherwise. With a path, what that file changes. scheme_override: a scheme's name for
 * everything, or NULL. */
enum status recipe_create(enum family family, bool smooth, const char *path, const char *scheme_override, struct recipe *out);
void recipe_free(struct recipe *recipe);           /* accepts a zeroed one */

/* choices[i] for tensor i; those of tensors that are no matrices are dynamic and mean nothing. Refuses what cannot be: rotated where it does
 * not fit, a rotated embedding, a pattern without a match. */
enum status recipe_apply(const struct recipe *recipe, const struct tensor_list *list, struct recipe_choice *choices);

/* The recipe in force, as a recipe file. */
void recipe_print(const struct recipe *recipe, FILE *out);

#endif
