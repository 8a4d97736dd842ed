#include "worker/convert/recipe.h"
#include <fnmatch.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "kernels/quantize.h"
#include "worker/convert/input_file.h"

/* Gemma's activations have outliers that one int8 scale a row does not survive: rotation spreads them over 128 columns; what the head and
 * the MLP's last layer read is not enough even then (gemma.cpp issue 1002), so these are 16 bits wide. The per-layer
 * gate reads the residual itself, without a norm. */
static const struct {
    const char *match;
    enum model_scheme scheme;
} gemma_entries[] = {
    { "model.embed_tokens.weight", MODEL_SCHEME_WIDE },
    { "*.mlp.down_proj.weight", MODEL_SCHEME_WIDE },
    { "*.per_layer_input_gate.weight", MODEL_SCHEME_WIDE },
};

static enum status parse_scheme(const char *where, const char *text, enum model_scheme *out)
{
    for (unsigned i = 0; text && i < MODEL_SCHEMES; i++)
        if (strcmp(text, model_scheme_name((enum model_scheme)i)) == 0) {
            *out = (enum model_scheme)i;
            return STATUS_OK;
        }
    return STATUS_FAIL(STATUS_INVALID, "%s: scheme \"%.32s\": want dynamic, static, rotated or wide", where, text ? text : "(not a string)");
}

static enum status add_entry(struct recipe *recipe, const char *match, enum model_scheme scheme, float input_scale)
{
    struct recipe_entry *entry = &recipe->entries[recipe->entry_count];
    *entry = (struct recipe_entry){ strdup(match), scheme, input_scale };
    if (!entry->match)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a recipe");
    recipe->entry_count++;
    return STATUS_OK;
}

static enum status set_family(struct recipe *recipe, enum family family)
{
    recipe->scheme = family == FAMILY_ROOST ? MODEL_SCHEME_DYNAMIC : MODEL_SCHEME_ROTATED;
    for (size_t i = 0; family != FAMILY_ROOST && i < sizeof gemma_entries / sizeof gemma_entries[0]; i++)
        TRY(add_entry(recipe, gemma_entries[i].match, gemma_entries[i].scheme, 0));
    return STATUS_OK;
}

static void clear_entries(struct recipe *recipe)
{
    while (recipe->entry_count > 0)
        free(recipe->entries[--recipe->entry_count].match);
}

/* ---- the file ---- */

static enum status read_entry(const char *path, size_t index, const json_t *object, struct recipe *recipe)
{
    char where[4200];
    enum model_scheme scheme;
    double input_scale = 0;
    const char *key;
    json_t *value;
    snprintf(where, sizeof where, "%s: tensors[%zu]", path, index);
    if (!json_is_object(object))
        return STATUS_FAIL(STATUS_INVALID, "%s: want an object", where);
    json_object_foreach((json_t *)object, key, value) {
        if (strcmp(key, "match") != 0 && strcmp(key, "scheme") != 0 && strcmp(key, "input_scale") != 0)
            return STATUS_FAIL(STATUS_INVALID, "%s: unknown key %.64s, want match, scheme, input_scale", where, key);
    }
    const char *match = json_string_value(json_object_get(object, "match"));
    const json_t *scale = json_object_get(object, "input_scale");
    if (!match)
        return STATUS_FAIL(STATUS_INVALID, "%s: match: want a pattern over tensor names", where);
    TRY(parse_scheme(where, json_string_value(json_object_get(object, "scheme")), &scheme));
    if (scale) {
        input_scale = json_number_value(scale);
        if (scheme != MODEL_SCHEME_STATIC)
            return STATUS_FAIL(STATUS_INVALID, "%s: input_scale belongs to scheme static", where);
        if (!json_is_number(scale) || !(input_scale >= 0x1p-100 && input_scale <= 0x1p100))    /* docs/numerics.md, section 3 */
            return STATUS_FAIL(STATUS_INVALID, "%s: input_scale: want a number from 2^-100 to 2^100", where);
    }
    return add_entry(recipe, match, scheme, (float)input_scale);
}

static enum status read_object(const char *path, const json_t *root, struct recipe *recipe)
{
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "default") == 0) {
            char where[4200];
            snprintf(where, sizeof where, "%s: default", path);
            TRY(parse_scheme(where, json_string_value(value), &recipe->scheme));
        } else if (strcmp(key, "smooth") == 0) {
            if (!json_is_boolean(value))
                return STATUS_FAIL(STATUS_INVALID, "%s: smooth: want true or false", path);
            recipe->smooth = json_is_true(value);
        } else if (strcmp(key, "tensors") == 0) {
            if (!json_is_array(value) || json_array_size(value) > RECIPE_ENTRIES_MAX)
                return STATUS_FAIL(STATUS_INVALID, "%s: tensors: want a list of at most %u entries", path, RECIPE_ENTRIES_MAX);
            clear_entries(recipe);
            for (size_t i = 0; i < json_array_size(value); i++)
                TRY(read_entry(path, i, json_array_get(value, i), recipe));
        } else {
            return STATUS_FAIL(STATUS_INVALID, "%s: unknown key %.64s, want default, smooth, tensors", path, key);
        }
    }
    return STATUS_OK;
}

enum status recipe_create(enum family family, bool smooth, const char *path, const char *scheme_override, struct recipe *out)
{
    struct recipe recipe = { .smooth = smooth, .entries = calloc(RECIPE_ENTRIES_MAX, sizeof *recipe.entries) };
    enum status st = recipe.entries ? STATUS_OK : STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a recipe");
    json_t *root = NULL;
    if (st == STATUS_OK)
        st = set_family(&recipe, family);
    if (st == STATUS_OK && path)
        st = input_file_read_json(path, &root);
    if (st == STATUS_OK && path)
        st = read_object(path, root, &recipe);
    if (st == STATUS_OK && scheme_override) {
        clear_entries(&recipe);
        st = parse_scheme("--scheme", scheme_override, &recipe.scheme);
    }
    json_decref(root);
    if (st != STATUS_OK) {
        recipe_free(&recipe);
        return st;
    }
    *out = recipe;
    return STATUS_OK;
}

void recipe_free(struct recipe *recipe)
{
    if (recipe->entries)
        clear_entries(recipe);
    free(recipe->entries);
    *recipe = (struct recipe){ 0 };
}

/* ---- use ---- */

static bool can_rotate(const struct tensor *tensor)
{
    return tensor->kind == TENSOR_MATRIX && tensor->columns % QUANTIZE_ROTATE_BLOCK == 0;
}

static enum status choose(const struct recipe *recipe, const struct tensor *tensor, bool *used, struct recipe_choice *choice)
{
    for (unsigned i = 0; i < recipe->entry_count; i++) {
        const struct recipe_entry *entry = &recipe->entries[i];
        if (fnmatch(entry->match, tensor->name, 0) != 0)
            continue;
        used[i] = true;
        if (entry->scheme == MODEL_SCHEME_ROTATED && tensor->kind == TENSOR_EMBEDDING)
            return STATUS_FAIL(STATUS_INVALID, "recipe: %s cannot be rotated: its rows are looked up as well", tensor->name);
        if (entry->scheme == MODEL_SCHEME_ROTATED && !can_rotate(tensor))
            return STATUS_FAIL(STATUS_INVALID, "recipe: %s cannot be rotated: its %u columns are not a multiple of %u", tensor->name,
                               tensor->columns, QUANTIZE_ROTATE_BLOCK);
        *choice = (struct recipe_choice){ entry->scheme, entry->input_scale };
        return STATUS_OK;
    }
    choice->scheme = recipe->scheme == MODEL_SCHEME_ROTATED && !can_rotate(tensor) ? MODEL_SCHEME_DYNAMIC : recipe->scheme;
    return STATUS_OK;
}

/* The family's own patterns may match nothing (Gemma 3 has no per-layer gate); a person's may not. */
static bool is_family_pattern(const char *match)
{
    for (size_t i = 0; i < sizeof gemma_entries / sizeof gemma_entries[0]; i++)
        if (strcmp(match, gemma_entries[i].match) == 0)
            return true;
    return false;
}

enum status recipe_apply(const struct recipe *recipe, const struct tensor_list *list, struct recipe_choice *choices)
{
    bool *used = calloc(recipe->entry_count + 1, sizeof *used);
    if (!used)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a recipe");
    enum status st = STATUS_OK;
    for (uint32_t i = 0; i < list->count && st == STATUS_OK; i++) {
        choices[i] = (struct recipe_choice){ MODEL_SCHEME_DYNAMIC, 0 };
        if (tensor_is_matrix(&list->tensors[i]))
            st = choose(recipe, &list->tensors[i], used, &choices[i]);
    }
    for (unsigned i = 0; i < recipe->entry_count && st == STATUS_OK; i++)
        if (!used[i] && !is_family_pattern(recipe->entries[i].match))
            st = STATUS_FAIL(STATUS_INVALID, "recipe: tensors[%u]: no matrix has a name like %.128s that an earlier entry left", i,
                             recipe->entries[i].match);
    free(used);
    return st;
}

void recipe_print(const struct recipe *recipe, FILE *out)
{
    json_t *root = json_object(), *list = json_array();
    json_object_set_new(root, "default", json_string(model_scheme_name(recipe->scheme)));
    json_object_set_new(root, "smooth", json_boolean(recipe->smooth));
    for (unsigned i = 0; i < recipe->entry_count; i++) {
        json_t *entry = json_object();
        json_object_set_new(entry, "match", json_string(recipe->entries[i].match));
        json_object_set_new(entry, "scheme", json_string(model_scheme_name(recipe->entries[i].scheme)));
        if (recipe->entries[i].input_scale > 0)
            json_object_set_new(entry, "input_scale", json_real((double)recipe->entries[i].input_scale));
        json_array_append_new(list, entry);
    }
    json_object_set_new(root, "tensors", list);
    (void)json_dumpf(root, out, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(root);
}
