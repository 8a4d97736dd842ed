/* fuzz_http.c - what comes to an operator port: heads one after the other, as the port cuts them. */
#include <stdlib.h>
#include <string.h>
#include "common/http_request.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    while (size > 0) {
        size_t head = http_head_bytes((const char *)data, size);
        FUZZ_CHECK(head <= size);
        if (head == 0)
            return 0;
        char *text = malloc(head + 1); /* exactly as much as may be written */
        if (!text)
            abort();
        memcpy(text, data, head);
        struct http_request request;
        const char *why = NULL;
        int code = http_request_parse(text, head, &request, &why);
        FUZZ_CHECK(code == 0 || (code >= 400 && code < 600 && why));
        FUZZ_CHECK(request.parameter_count <= HTTP_PARAMETERS_MAX);
        if (code == 0) {
            FUZZ_CHECK(request.path[0] == '/' && request.method[0]);
            for (unsigned i = 0; i < request.parameter_count; i++)
                FUZZ_CHECK(strlen(request.parameters[i].name) + strlen(request.parameters[i].value) <= head);
        }
        free(text);
        data += head;
        size -= head;
    }
    return 0;
}
