#include "deploy/roost/chat_input.h"
#include <errno.h>
#include <histedit.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>
#include "common/utf8.h"
#include "deploy/roost/chat_turn.h"
#include "proto/wire.h"

#define TERMINAL_HISTORY_LINES 1000
#define LINE_BYTES_MAX WIRE_BODY_BYTES_MAX

struct chat_input {
    const char *prompt;       /* ref, owned by the caller */
    FILE *file;               /* owned unless it is stdin; NULL with a terminal */
    EditLine *editor;         /* owned; NULL without a terminal */
    History *history;
    bool fresh;               /* nothing was typed yet at this prompt */
    char *line;               /* owned; what was read last */
    size_t capacity;
};

static struct chat_input *input_of(EditLine *editor)
{
    void *data = NULL;
    el_get(editor, EL_CLIENTDATA, &data);
    return data;
}

static char *prompt_of(EditLine *editor)
{
    return (char *)input_of(editor)->prompt;
}

/* One character for the editor: 1, or 0 at the end of the input and when interrupted. What is not UTF-8 is left out.
 * The editor shows its prompt before it changes the terminal's mode: a Ctrl-D typed between the two comes as NUL. */
static int read_character(EditLine *editor, wchar_t *out)
{
    struct chat_input *input = input_of(editor);
    bool fresh = input->fresh;
    char bytes[4];
    uint32_t code_point;
    for (size_t size = 0;;) {
        if (!chat_turn_wait_readable(STDIN_FILENO))
            return 0;
        ssize_t got = read(STDIN_FILENO, bytes + size, 1);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0 || (fresh && size == 0 && bytes[0] == '\0'))
            return 0;
        input->fresh = false;
        size++;
        if (utf8_decode(bytes, size, &code_point) == size) {
            *out = (wchar_t)code_point;
            return 1;
        }
        if (size == sizeof bytes || (unsigned char)bytes[0] < 0xC0)
            size = 0;
    }
}

static enum status terminal_open(struct chat_input *input)
{
    HistEvent event;
    input->editor = el_init("roost", stdin, stdout, stderr);
    input->history = history_init();
    if (!input->editor || !input->history)
        return STATUS_FAIL(STATUS_IO, "cannot set up the terminal");
    history(input->history, &event, H_SETSIZE, TERMINAL_HISTORY_LINES);
    history(input->history, &event, H_SETUNIQUE, 1);
    el_set(input->editor, EL_CLIENTDATA, input);
    el_set(input->editor, EL_PROMPT, prompt_of);
    el_set(input->editor, EL_EDITOR, "emacs");
    el_set(input->editor, EL_GETCFN, read_character);
    el_set(input->editor, EL_HIST, history, input->history);
    return STATUS_OK;
}

enum status chat_input_create(const char *path, const char *prompt, struct chat_input **out)
{
    enum status st;
    struct chat_input *input = calloc(1, sizeof *input);
    if (!input)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for the input");
    input->prompt = prompt;
    if (path) {
        input->file = fopen(path, "re");
        if (!input->file) {
            st = STATUS_FAIL(STATUS_IO, "cannot read %s: %s", path, strerror(errno));
            goto fail;
        }
    } else if (isatty(STDIN_FILENO)) {
        TRY_GOTO(terminal_open(input), st, fail);
    } else {
        input->file = stdin;
    }
    *out = input;
    return STATUS_OK;
fail:
    chat_input_destroy(&input);
    return st;
}

void chat_input_destroy(struct chat_input **slot)
{
    struct chat_input *input = *slot;
    if (!input)
        return;
    if (input->editor)
        el_end(input->editor);
    if (input->history)
        history_end(input->history);
    if (input->file && input->file != stdin)
        fclose(input->file);
    free(input->line);
    free(input);
    *slot = NULL;
}

bool chat_input_is_terminal(const struct chat_input *input)
{
    return input->editor != NULL;
}

/* In place: what is read never overtakes what is written. */
static size_t resolve_escapes(char *text, size_t size)
{
    size_t to = 0;
    for (size_t from = 0; from < size; from++) {
        char c = text[from];
        if (c == '\\' && from + 1 < size && (text[from + 1] == 'n' || text[from + 1] == '\\'))
            c = text[++from] == 'n' ? '\n' : '\\';
        text[to++] = c;
    }
    text[to] = '\0';
    return to;
}

/* One line of the terminal or the file in input->line; *size with its end. */
static enum status read_line(struct chat_input *input, size_t *size)
{
    if (input->editor) {
        int count = 0;
        input->fresh = true;
        const char *text = el_gets(input->editor, &count);
        if (chat_turn_interrupted())
            return STATUS_FAIL(STATUS_CANCELLED, "interrupted");
        if (!text || count <= 0)
            return STATUS_FAIL(STATUS_CLOSED, "the end of the input");
        free(input->line);
        input->line = strdup(text);
        if (!input->line)
            return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a line");
        *size = strlen(text);
        return STATUS_OK;
    }
    errno = 0;
    ssize_t got = getline(&input->line, &input->capacity, input->file);
    if (got < 0 && chat_turn_interrupted())
        return STATUS_FAIL(STATUS_CANCELLED, "interrupted");
    if (got < 0 && errno == ENOMEM)
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a line");
    if (got < 0 && ferror(input->file))
        return STATUS_FAIL(STATUS_IO, "cannot read the input: %s", strerror(errno));
    if (got < 0)
        return STATUS_FAIL(STATUS_CLOSED, "the end of the input");
    *size = (size_t)got;
    return STATUS_OK;
}

enum status chat_input_next(struct chat_input *input, const char **line, size_t *size)
{
    size_t got = 0;
    TRY(read_line(input, &got));
    while (got > 0 && (input->line[got - 1] == '\n' || input->line[got - 1] == '\r'))
        got--;
    if (memchr(input->line, '\0', got))
        return STATUS_FAIL(STATUS_INVALID, "a line holds a NUL byte: messages are text");
    if (got > LINE_BYTES_MAX)
        return STATUS_FAIL(STATUS_LIMIT, "a line of %zu bytes: a message has at most %u", got, LINE_BYTES_MAX);
    input->line[got] = '\0';
    if (input->editor && got > 0) {
        HistEvent event;
        history(input->history, &event, H_ENTER, input->line);
    }
    *size = resolve_escapes(input->line, got);
    *line = input->line;
    return STATUS_OK;
}
