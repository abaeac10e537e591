-- Count a group: be one of it for a while, or no longer.
--
-- KEYS   1 sorted set: process by the end of its time in µs
-- ARGV   1 now_us (0: the server's time), 2 process, 3 ttl_us (0: it leaves)
-- Returns how many there are now; 1 if the process was one of them before, else 0
-- Clock  the server's; a process that dies is counted no longer than its ttl_us
-- Cost   1 TIME and 6 commands, O(log processes)

local now, margin = clock(tonumber(ARGV[1]))
local key, process, ttl = KEYS[1], ARGV[2], tonumber(ARGV[3])

redis.call('ZREMRANGEBYSCORE', key, '-inf', string.format('%d', now))
local known = redis.call('ZSCORE', key, process) and 1 or 0
if ttl > 0 then
  redis.call('ZADD', key, string.format('%d', now + ttl), process)
else
  redis.call('ZREM', key, process)
end
local longest = redis.call('ZRANGE', key, -1, -1, 'WITHSCORES')[2]
if longest then
  redis.call('PEXPIRE', key, string.format('%d', math.ceil((longest - now) / 1000) + margin))
end
return {redis.call('ZCARD', key), known}
