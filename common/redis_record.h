/* redis_record.h - the placement record of a conversation as Redis holds it, for those who write scripts over it: the
 * router (router/placement_redis.c: owner, cache, epoch) and the owner (worker/server/conversations.c: tokens, tier).
 *
 * A hash `roost:{H}:place`, H the key in hex: owner (worker name), cache (cache id in hex, or empty), epoch, tokens,
 * tier ("device" or "host"). What Redis holds is not trusted: read() looks at type and sizes before it reads a field,
 * so that neither a wrong type nor a huge value gets out of Redis; a record whose owner, cache or epoch breaks a rule
 * counts as none, and other fields as absent. Needs Redis 5 (scripts replicate what they do). */
#ifndef ROOST_COMMON_REDIS_RECORD_H
#define ROOST_COMMON_REDIS_RECORD_H
#include <stdint.h>

#define REDIS_RECORD_TTL_S     86400               /* a day without a turn: no worker holds its cache by then */
#define REDIS_RECORD_EPOCH_MAX (UINT64_C(1) << 52) /* Lua counts in doubles; us since 1970 reach it in the year 2112 */
#define REDIS_RECORD_FIELDS    7                   /* of an answer */

#define REDIS_RECORD_KEY      "roost:{%s}:place"
#define REDIS_RECORD_KEY_SIZE (7 + 32 + 7 + 1)

/* Begins each script. 4503599627370496 is REDIS_RECORD_EPOCH_MAX.
 *   read()               {owner, cache, epoch, tokens, tier}, or nil
 *   epoch(stored, given) a new one: max(stored + 1, time, given)
 *   write(r, ttl)        the whole record. UNLINK only where there is something: after a first write that Redis allows
 *                        without memory, a script may go on over maxmemory
 *   answer(ours, r)      {ours, owner, cache, epoch, tokens, tier, age in ms}; r nil: no record stands */
#define REDIS_RECORD_LUA                                                                                               \
    "local key = KEYS[1]\n"                                                                                            \
    "local function now()\n"                                                                                           \
    "  local t = redis.call('TIME')\n"                                                                                 \
    "  return tonumber(t[1]) * 1000000 + tonumber(t[2])\n"                                                             \
    "end\n"                                                                                                            \
    "local function size(field, least, most)\n"                                                                        \
    "  local n = redis.call('HSTRLEN', key, field)\n"                                                                  \
    "  return n >= least and n <= most\n"                                                                              \
    "end\n"                                                                                                            \
    "local function read()\n"                                                                                          \
    "  if redis.call('TYPE', key).ok ~= 'hash' then return nil end\n"                                                  \
    "  if not (size('owner', 1, 64) and size('epoch', 1, 16)) then return nil end\n"                                   \
    "  if not (size('cache', 0, 0) or size('cache', 32, 32)) then return nil end\n"                                    \
    "  local f = redis.call('HMGET', key, 'owner', 'cache', 'epoch')\n"                                                \
    "  local cache, tokens, tier = f[2] or '', '0', ''\n"                                                              \
    "  if string.find(f[1], '[^%w._:-]') or string.find(f[3], '%D') or string.find(f[3], '^0%d') or "                  \
    "string.find(cache, '%X') then return nil end\n"                                                                   \
    "  if tonumber(f[3]) >= 4503599627370496 then return nil end\n"                                                    \
    "  if size('tokens', 1, 9) then\n"                                                                                 \
    "    tokens = redis.call('HGET', key, 'tokens')\n"                                                                 \
    "    if string.find(tokens, '%D') then tokens = '0' end\n"                                                         \
    "  end\n"                                                                                                          \
    "  if size('tier', 4, 6) then\n"                                                                                   \
    "    tier = redis.call('HGET', key, 'tier')\n"                                                                     \
    "    if tier ~= 'device' and tier ~= 'host' then tier = '' end\n"                                                  \
    "  end\n"                                                                                                          \
    "  return {f[1], cache, f[3], tokens, tier}\n"                                                                     \
    "end\n"                                                                                                            \
    "local function epoch(stored, given)\n"                                                                            \
    "  local e = now()\n"                                                                                              \
    "  if stored + 1 > e then e = stored + 1 end\n"                                                                    \
    "  if given > e then e = given end\n"                                                                              \
    "  return string.format('%.0f', e)\n"                                                                              \
    "end\n"                                                                                                            \
    "local function write(r, ttl)\n"                                                                                   \
    "  if redis.call('EXISTS', key) == 1 then redis.call('UNLINK', key) end\n"                                         \
    "  redis.call('HSET', key, 'owner', r[1], 'cache', r[2], 'epoch', r[3])\n"                                         \
    "  if r[4] ~= '0' then redis.call('HSET', key, 'tokens', r[4], 'tier', r[5]) end\n"                                \
    "  redis.call('EXPIRE', key, ttl)\n"                                                                               \
    "end\n"                                                                                                            \
    "local function answer(ours, r)\n"                                                                                 \
    "  if not r then return {ours, '', '', '0', '0', '', 0} end\n"                                                     \
    "  return {ours, r[1], r[2], r[3], r[4], r[5], math.max(0, math.floor((now() - tonumber(r[3])) / 1000))}\n"        \
    "end\n"                                                                                                            \
    "local r = read()\n"

#endif
