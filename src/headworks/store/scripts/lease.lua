-- Hold one of a few places for a while, renew it, or return it.
--
-- KEYS   1 hash: holder by "end of its lease in µs:fence"; under the empty name "0:last fence"
-- ARGV   1 now_us (0: the server's time), 2 holder, 3 limit (-1: return the place), 4 ttl_us
-- Returns the fence of the lease that was begun or renewed; 0 all places are held by others, or
--         returned. Fences begun later are greater, as long as the server's clock does not run back.
-- Clock  the server's; a holder that dies loses its place after ttl_us
-- Cost   1 TIME and at most 4 commands, O(places)

local now, margin = clock(tonumber(ARGV[1]))
local key, holder, limit, ttl = KEYS[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])

if limit < 0 then
  redis.call('HDEL', key, holder)
  return 0
end
local all, over, places, longest, fence, last = redis.call('HGETALL', key), {}, 0, now + ttl, nil, 0
for i = 1, #all, 2 do
  local ends, fenced = string.match(all[i + 1], '(%d+):(%d+)')
  ends, fenced = tonumber(ends), tonumber(fenced)
  last = math.max(last, fenced)
  if all[i] ~= '' then
    if ends <= now then
      over[#over + 1] = all[i]
    else
      places, longest = places + 1, math.max(longest, ends)
      if all[i] == holder then fence = fenced end
    end
  end
end
if #over > 0 then redis.call('HDEL', key, unpack(over)) end
if not fence then
  if places >= limit then return 0 end
  fence = math.max(now, last + 1)
  last = fence
end
redis.call('HSET', key, holder, string.format('%d:%d', now + ttl, fence), '', string.format('0:%d', last))
redis.call('PEXPIRE', key, string.format('%d', math.ceil((longest - now) / 1000) + margin))
return fence
