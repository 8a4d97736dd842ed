#include "deploy/roost/operator_client.h"
#include <curl/curl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common/utf8.h"

#define ANSWER_BYTES_MAX (16u << 20)   /* 1,024 workers of 800 bytes are 0.8 MB */
#define TIMEOUT_S 10L

struct answer {
    char *text;      /* owned */
    size_t size;
};

static size_t on_data(char *data, size_t one, size_t count, void *user)
{
    struct answer *answer = user;
    (void)one;
    if (count > ANSWER_BYTES_MAX - answer->size)
        return 0;
    char *text = realloc(answer->text, answer->size + count + 1);
    if (!text)
        return 0;
    memcpy(text + answer->size, data, count);
    answer->text = text;
    answer->size += count;
    text[answer->size] = '\0';
    return count;
}

/* ROUTER/path?name=value&...; owned by the caller; NULL: no memory. */
static char *make_url(CURL *curl, const char *router, const char *path, const struct operator_parameter *parameters, unsigned count)
{
    char *url = NULL;
    size_t size = strlen(router);
    while (size > 0 && router[size - 1] == '/')
        size--;
    if (asprintf(&url, "%.*s%s", (int)size, router, path) < 0)
        return NULL;
    const char *separator = "?";
    for (unsigned i = 0; i < count; i++) {
        if (!parameters[i].value)
            continue;
        char *escaped = curl_easy_escape(curl, parameters[i].value, 0), *longer = NULL;
        if (!escaped || asprintf(&longer, "%s%s%s=%s", url, separator, parameters[i].name, escaped) < 0)
            longer = NULL;
        curl_free(escaped);
        free(url);
        if (!longer)
            return NULL;
        url = longer;
        separator = "&";
    }
    return url;
}

static enum status read_answer(const char *router, long code, const struct answer *answer, json_t **out)
{
    json_t *json = answer->text ? json_loadb(answer->text, answer->size, 0, NULL) : NULL;
    if (!json || !json_is_object(json)) {
        json_decref(json);
        return STATUS_FAIL(STATUS_IO, "what answers at %s is not the operator port of a router (status %ld, no JSON)", router, code);
    }
    if (code >= 200 && code < 300) {
        *out = json;
        return STATUS_OK;
    }
    const char *error = json_string_value(json_object_get(json, "error"));
    char plain[300] = "no reason given";
    if (error)
        utf8_quote(error, strlen(error), plain, sizeof plain);
    json_decref(json);
    return STATUS_FAIL(code == 404 ? STATUS_NOT_FOUND : STATUS_IO, "%s", plain);
}

enum status operator_call(const char *router, const char *method, const char *path, const struct operator_parameter *parameters,
                          unsigned count, json_t **out)
{
    struct answer answer = { 0 };
    char words[CURL_ERROR_SIZE] = "";
    CURL *curl = curl_easy_init();
    char *url = curl ? make_url(curl, router, path, parameters, count) : NULL;
    if (!url) {
        curl_easy_cleanup(curl);
        return STATUS_FAIL(STATUS_NO_MEMORY, "no memory for a request");
    }
    const bool post = strcmp(method, "POST") == 0;
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http");
    curl_easy_setopt(curl, CURLOPT_PROXY, "");              /* an operator port is never behind one */
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT, TIMEOUT_S);
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, words);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &answer);
    if (post)
        curl_easy_setopt(curl, CURLOPT_POSTFIELDS, "");
    CURLcode result = curl_easy_perform(curl);
    long code = 0;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &code);
    enum status st;
    if (result == CURLE_OK)
        st = read_answer(router, code, &answer, out);
    else
        st = STATUS_FAIL(STATUS_IO, "no router answers at %s: %s. A router has this port with the setting listen_operator; name it with --router",
                         router, words[0] ? words : curl_easy_strerror(result));
    curl_easy_cleanup(curl);
    free(url);
    free(answer.text);
    return st;
}
