-- What every script needs to know of time. This file is put in front of the others; by itself it does
-- nothing. Times are microseconds, whole numbers below 2^53.

-- The time of the server, or the time given by a test; a given one may run slower than the
-- server's, so keys then live a minute longer than they need, else a second.
local function clock(given)
  if given > 0 then return given, 60000 end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2], 1000
end

local function keep(key, packed, clears, now, margin)
  local ttl = math.max(1, math.ceil((clears - now) / 1000) + margin)
  redis.call('SET', key, packed, 'PX', string.format('%d', ttl))
end
