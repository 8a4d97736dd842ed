/* config_file.c - a YAML file over a settings struct. Owns the file's bytes and what the YAML libraries made of them, for the
 * length of a call.
 *
 *   bytes (at most CONFIG_FILE_BYTES_MAX) --> survey (libyaml events): shape, depth, keys, the line of each key
 *         --> libcyaml, with a schema made from the table of fields: every value as text --> config_assign
 *
 * The survey runs first because libcyaml 1.3 takes a key twice without a word, says nothing of what would be right, and
 * because it must see only documents of a known depth. libyaml's events come one by one, so a file of 100,000 brackets ends
 * at the third. */
#include <assert.h>
#include <cyaml/cyaml.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <yaml.h>
#include "common/utf8.h"
#include "config_internal.h"

enum { PATH_BYTES = 200, PREFIX_BYTES = PATH_BYTES + 24 };

struct file {
    const struct config_program *program; /* ref */
    char path[PATH_BYTES];                /* as shown in messages */
    uint8_t *bytes;
    size_t size;
    size_t *lines; /* per field: where its key is, from 1; 0: not in the file */
};

/* ---- bytes ---- */

static enum status read_bytes(struct file *file, const char *path)
{
    enum status st = STATUS_OK;
    size_t space = CONFIG_FILE_BYTES_MAX + 1;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return STATUS_FAIL(errno == ENOENT ? STATUS_NOT_FOUND : STATUS_IO, "%s: cannot be opened: %s", file->path,
                           strerror(errno));
    file->bytes = malloc(space);
    if (!file->bytes) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory to read it", file->path);
        goto done;
    }
    while (file->size < space) {
        ssize_t got = read(fd, file->bytes + file->size, space - file->size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            st = STATUS_FAIL(STATUS_IO, "%s: cannot be read: %s", file->path, strerror(errno));
            goto done;
        }
        if (got == 0)
            break;
        file->size += (size_t)got;
    }
    if (file->size == space)
        st = STATUS_FAIL(STATUS_LIMIT, "%s: is larger than %u bytes, is it the right file?", file->path, CONFIG_FILE_BYTES_MAX);
done:
    close(fd);
    return st;
}

static bool is_blank(const struct file *file)
{
    for (size_t i = 0; i < file->size; i++) {
        if (!strchr(" \t\r\n", file->bytes[i]) || file->bytes[i] == '\0')
            return false;
    }
    return true;
}

/* ---- the survey ---- */

static enum status fail_at(const struct file *file, size_t line, const char *format, ...) __attribute__((format(printf, 3, 4)));

static enum status fail_at(const struct file *file, size_t line, const char *format, ...)
{
    char words[512];
    va_list args;
    va_start(args, format);
    vsnprintf(words, sizeof words, format, args);
    va_end(args);
    return STATUS_FAIL(STATUS_INVALID, "%s:%zu: %s", file->path, line, words);
}

static size_t event_line(const yaml_event_t *event)
{
    return event->start_mark.line + 1;
}

static enum status fail_yaml(const struct file *file, const yaml_parser_t *parser)
{
    size_t line = parser->problem_mark.line + 1;
    if (parser->error == YAML_MEMORY_ERROR)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory to read it", file->path);
    if (parser->error == YAML_READER_ERROR) { /* bad UTF-8 and the like: no mark, but an offset */
        line = 1;
        for (size_t i = 0; i < parser->problem_offset && i < file->size; i++)
            line += file->bytes[i] == '\n';
    }
    return fail_at(file, line, "not valid YAML: %s", parser->problem ? parser->problem : "unknown problem");
}

static enum status next_event(const struct file *file, yaml_parser_t *parser, yaml_event_t *event)
{
    if (!yaml_parser_parse(parser, event))
        return fail_yaml(file, parser);
    bool anchored = event->type == YAML_ALIAS_EVENT ||
                    (event->type == YAML_SCALAR_EVENT && event->data.scalar.anchor) ||
                    (event->type == YAML_SEQUENCE_START_EVENT && event->data.sequence_start.anchor) ||
                    (event->type == YAML_MAPPING_START_EVENT && event->data.mapping_start.anchor);
    if (!anchored)
        return STATUS_OK;
    size_t line = event_line(event);
    yaml_event_delete(event);
    return fail_at(file, line, "anchors and aliases (& and *) are not supported: write the value out");
}

/* `key:` and `key: ~` say nothing; an empty text is written "". */
static bool is_null(const yaml_event_t *event)
{
    const char *value = (const char *)event->data.scalar.value;
    return event->data.scalar.style == YAML_PLAIN_SCALAR_STYLE &&
           (!*value || strcmp(value, "~") == 0 || strcmp(value, "null") == 0 || strcmp(value, "Null") == 0 ||
            strcmp(value, "NULL") == 0);
}

static enum status check_scalar(const struct file *file, const struct config_field *field, const yaml_event_t *event)
{
    char wanted[256];
    size_t line = event_line(event);
    if (memchr(event->data.scalar.value, '\0', event->data.scalar.length))
        return fail_at(file, line, "'%s' has a NUL character", field->key);
    if (is_null(event))
        return fail_at(file, line, "'%s' has no value: it must be %s", field->key, config_describe(field, wanted, sizeof wanted));
    return STATUS_OK;
}

static enum status fail_shape(const struct file *file, const struct config_field *field, const yaml_event_t *event)
{
    char wanted[256];
    const char *shape = event->type == YAML_MAPPING_START_EVENT    ? "a mapping"
                        : event->type == YAML_SEQUENCE_START_EVENT ? "a list"
                                                                   : "a single value";
    return fail_at(file, event_line(event), "'%s' is %s: it must be %s", field->key, shape,
                   config_describe(field, wanted, sizeof wanted));
}

static enum status survey_items(const struct file *file, yaml_parser_t *parser, const struct config_field *field)
{
    for (;;) {
        yaml_event_t event;
        TRY(next_event(file, parser, &event));
        enum status st = STATUS_OK;
        bool end = event.type == YAML_SEQUENCE_END_EVENT;
        if (event.type == YAML_SCALAR_EVENT)
            st = check_scalar(file, field, &event);
        else if (!end)
            st = fail_at(file, event_line(&event), "'%s' has a list or a mapping inside: its items must be texts", field->key);
        yaml_event_delete(&event);
        if (st != STATUS_OK || end)
            return st;
    }
}

static enum status survey_value(const struct file *file, yaml_parser_t *parser, const struct config_field *field)
{
    yaml_event_t event;
    TRY(next_event(file, parser, &event));
    enum status st = STATUS_OK;
    if (event.type == YAML_SCALAR_EVENT && field->type != CONFIG_LIST)
        st = check_scalar(file, field, &event);
    else if (event.type == YAML_SEQUENCE_START_EVENT && field->type == CONFIG_LIST)
        st = survey_items(file, parser, field);
    else
        st = fail_shape(file, field, &event);
    yaml_event_delete(&event);
    return st;
}

static enum status survey_key(struct file *file, const yaml_event_t *event, const struct config_field **out)
{
    size_t line = event_line(event);
    if (event->type != YAML_SCALAR_EVENT)
        return fail_at(file, line, "a key must be a word");
    const char *key = (const char *)event->data.scalar.value;
    size_t key_size = event->data.scalar.length;
    const struct config_field *field = strlen(key) == key_size ? config_find(file->program, key) : NULL;
    if (!field) {
        char quoted[CONFIG_QUOTE_BYTES];
        const char *near = config_suggest(file->program, key);
        return fail_at(file, line, "unknown key '%s'%s%s%s", utf8_quote(key, key_size, quoted, sizeof quoted),
                       near ? " (did you mean '" : "", near ? near : "", near ? "'?)" : "");
    }
    size_t *seen = &file->lines[field - file->program->fields];
    if (*seen)
        return fail_at(file, line, "'%s' is set twice, first on line %zu", field->key, *seen);
    *seen = line;
    *out = field;
    return STATUS_OK;
}

static enum status survey_mapping(struct file *file, yaml_parser_t *parser)
{
    for (;;) {
        yaml_event_t event;
        const struct config_field *field = NULL;
        TRY(next_event(file, parser, &event));
        bool end = event.type == YAML_MAPPING_END_EVENT;
        enum status st = end ? STATUS_OK : survey_key(file, &event, &field);
        yaml_event_delete(&event);
        if (st != STATUS_OK || end)
            return st;
        TRY(survey_value(file, parser, field));
    }
}

/* *settings_found is false for a file of comments only. */
static enum status survey_stream(struct file *file, yaml_parser_t *parser, bool *settings_found)
{
    enum status st = STATUS_OK;
    for (bool end = false; st == STATUS_OK && !end;) {
        yaml_event_t event;
        TRY(next_event(file, parser, &event));
        size_t line = event_line(&event);
        switch (event.type) {
        case YAML_STREAM_END_EVENT:
            end = true;
            break;
        case YAML_DOCUMENT_START_EVENT:
            if (*settings_found)
                st = fail_at(file, line, "a second document starts here: settings are one document");
            break;
        case YAML_MAPPING_START_EVENT:
            *settings_found = true;
            st = survey_mapping(file, parser);
            break;
        case YAML_SCALAR_EVENT:
        case YAML_SEQUENCE_START_EVENT:
            st = fail_at(file, line, "settings must be a mapping, lines of 'key: value'");
            break;
        default:
            break;
        }
        yaml_event_delete(&event);
    }
    return st;
}

static enum status survey(struct file *file, bool *settings_found)
{
    yaml_parser_t parser;
    if (!yaml_parser_initialize(&parser))
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory to read it", file->path);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, file->bytes, file->size);
    enum status st = survey_stream(file, &parser, settings_found);
    yaml_parser_delete(&parser);
    return st;
}

/* ---- libcyaml ---- */

union slot { /* per field, what libcyaml fills: text or texts */
    char *text;
    struct {
        char **items;
        unsigned count;
    } list;
};

/* The members of libcyaml's schema are const in places, so each entry is made whole and copied. */
static cyaml_schema_field_t *make_schema(const struct config_program *program, const cyaml_schema_value_t *entry)
{
    cyaml_schema_field_t *schema = calloc(program->field_count + 1, sizeof *schema); /* a NULL key ends it */
    for (unsigned i = 0; schema && i < program->field_count; i++) {
        const cyaml_schema_field_t text = {
            .key = program->fields[i].key,
            .data_offset = (uint32_t)(i * sizeof(union slot) + offsetof(union slot, text)),
            .value = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char, 0, CYAML_UNLIMITED)},
        };
        const cyaml_schema_field_t list = {
            .key = program->fields[i].key,
            .data_offset = (uint32_t)(i * sizeof(union slot) + offsetof(union slot, list.items)),
            .count_offset = (uint32_t)(i * sizeof(union slot) + offsetof(union slot, list.count)),
            .count_size = sizeof(unsigned),
            .value = {CYAML_VALUE_SEQUENCE(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char *, entry, 0, CYAML_UNLIMITED)},
        };
        memcpy(&schema[i], program->fields[i].type == CONFIG_LIST ? &list : &text, sizeof schema[i]);
    }
    return schema;
}

struct cyaml_words {
    char first[160]; /* the first complaint; the rest is a backtrace */
    unsigned line;   /* the innermost line that the backtrace names; 0: none */
};

static void on_cyaml_log(cyaml_log_t level, void *user, const char *format, va_list args)
{
    struct cyaml_words *words = user;
    char text[160];
    vsnprintf(text, sizeof text, format, args);
    text[strcspn(text, "\n")] = '\0';
    const char *line = strstr(text, "(line: ");
    if (line && words->line == 0)
        words->line = (unsigned)strtoul(line + 7, NULL, 10);
    if (level >= CYAML_LOG_ERROR && !line && !words->first[0] && !strstr(text, "Backtrace"))
        utf8_quote(text, strlen(text), words->first, sizeof words->first);
}

static enum status assign_slots(const struct file *file, const union slot *slots, void *settings)
{
    for (unsigned i = 0; i < file->program->field_count; i++) {
        const struct config_field *field = &file->program->fields[i];
        if (file->lines[i] == 0)
            continue;
        char prefix[PREFIX_BYTES];
        snprintf(prefix, sizeof prefix, "%s:%zu: ", file->path, file->lines[i]);
        if (field->type == CONFIG_LIST)
            TRY(config_assign_list(field, settings, slots[i].list.items, slots[i].list.count, prefix));
        else
            TRY(config_assign(field, settings, slots[i].text, prefix));
    }
    return STATUS_OK;
}

static enum status load_values(const struct file *file, void *settings)
{
    const cyaml_schema_value_t entry = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER, char, 0, CYAML_UNLIMITED)};
    cyaml_schema_field_t *fields = make_schema(file->program, &entry);
    if (!fields)
        return STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory to read it", file->path);
    const cyaml_schema_value_t top = {
        .type = CYAML_MAPPING,
        .flags = CYAML_FLAG_POINTER,
        .data_size = (uint32_t)((file->program->field_count ? file->program->field_count : 1) * sizeof(union slot)),
        .mapping = {.fields = fields},
    };
    struct cyaml_words words = {.line = 0};
    const cyaml_config_t config = {.log_fn = on_cyaml_log, .log_ctx = &words, .mem_fn = cyaml_mem,
                                   .log_level = CYAML_LOG_ERROR, .flags = CYAML_CFG_NO_ALIAS};
    cyaml_data_t *slots = NULL;
    cyaml_err_t error = cyaml_load_data(file->bytes, file->size, &config, &top, &slots, NULL);
    enum status st = STATUS_OK;
    if (error == CYAML_ERR_OOM)
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory to read it", file->path);
    else if (error != CYAML_OK) /* the survey should have said it better */
        st = fail_at(file, words.line ? words.line : 1, "%s", words.first[0] ? words.first : cyaml_strerror(error));
    else
        st = assign_slots(file, slots, settings);
    cyaml_free(&config, &top, slots, 0);
    free(fields);
    return st;
}

/* ---- all together ---- */

enum status config_read_file(const struct config_program *program, const char *path, void *settings)
{
    struct file file = {.program = program};
    enum status st = STATUS_OK;
    bool settings_found = false;
    utf8_quote(path, strlen(path), file.path, sizeof file.path);
    file.lines = calloc(program->field_count + 1, sizeof *file.lines);
    if (!file.lines) {
        st = STATUS_FAIL(STATUS_NO_MEMORY, "%s: no memory to read it", file.path);
        goto done;
    }
    TRY_GOTO(read_bytes(&file, path), st, done);
    if (is_blank(&file)) {
        st = fail_at(&file, 1, "the file is empty: write {} for no settings");
        goto done;
    }
    TRY_GOTO(survey(&file, &settings_found), st, done);
    if (settings_found)
        TRY_GOTO(load_values(&file, settings), st, done);
done:
    free(file.lines);
    free(file.bytes);
    return st;
}
