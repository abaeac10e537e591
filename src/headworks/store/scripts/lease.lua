-- Hold one of a few places for a while, renew it, or return it.
--
-- KEYS   1 sorted set: holder by the end of its lease in µs
-- ARGV   1 now_us (0: the server's time), 2 holder, 3 limit (-1: return the place), 4 ttl_us
-- Returns 1 held or renewed, 0 all places are held by others, or returned
-- Clock  the server's; a holder that dies loses its place after ttl_us
-- Cost   1 TIME and at most 5 commands, O(log places)

local now, margin = clock(tonumber(ARGV[1]))
local key, holder, limit, ttl = KEYS[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%d', now))
if limit < 0 then
  redis.call('ZREM', key, holder)
  return 0
end
if not redis.call('ZSCORE', key, holder) and redis.call('ZCARD', key) >= limit then return 0 end
redis.call('ZADD', key, string.format('%d', now + ttl), holder)
local last = redis.call('ZREVRANGE', key, 0, 0, 'WITHSCORES')
local longest = math.ceil((tonumber(last[2]) - now) / 1000)
redis.call('PEXPIRE', key, string.format('%d', math.max(1, longest + margin)))
return 1
