/* placement.c - what the stores share: keys and destruction. */
#include "router/placement.h"
#include <string.h>

void placement_salt_make(const char *text, struct placement_salt *out)
{
    hash_digest(text ? text : "", text ? strlen(text) : 0, NULL, 0, out->digest);
}

/* (tenant size, tenant, conversation): the size keeps ("a", "bc") and ("ab", "c") apart. */
void placement_key_make(const struct placement_salt *salt, struct wire_span tenant, struct wire_span conversation,
                        struct placement_key *out)
{
    uint8_t text[4 + 2 * WIRE_NAME_MAX];
    size_t size = 0;
    for (unsigned i = 0; i < 4; i++)
        text[size++] = (uint8_t)(tenant.size >> (8 * i));
    size_t tenant_size = tenant.size < WIRE_NAME_MAX ? tenant.size : WIRE_NAME_MAX;
    size_t conversation_size = conversation.size < WIRE_NAME_MAX ? conversation.size : WIRE_NAME_MAX;
    if (tenant_size)
        memcpy(text + size, tenant.data, tenant_size);
    size += tenant_size;
    if (conversation_size)
        memcpy(text + size, conversation.data, conversation_size);
    size += conversation_size;
    uint8_t digest[HASH_DIGEST_BYTES];
    hash_digest(text, size, salt->digest, sizeof salt->digest, digest);
    memcpy(out->id, digest, sizeof out->id);
    hash_hex(out->id, sizeof out->id, out->hex);
}

void placement_destroy(struct placement **placement)
{
    struct placement *gone = *placement;
    *placement = NULL;
    if (gone)
        gone->ops->destroy(gone);
}
