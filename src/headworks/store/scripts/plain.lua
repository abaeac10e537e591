-- The call that nearly everybody makes: one question about one limit, now, with nothing else to it. It is
-- answered here, straight on; whatever is not plain (a layout of large numbers, a bucket that was given
-- something back, a booking ahead) falls through to the scripts behind this file, which decide the same.
-- By itself it does nothing. KEYS, ARGV, what is returned and what is kept: decide.lua and shapes.lua.
--
-- Cost  1 TIME, 1 GET, and 1 SET where something is taken

if ARGV[2] and not ARGV[3] and #ARGV[2] == 37 then
  local packed, unpacked, floor = struct.pack, struct.unpack, math.floor
  local kind, shape, cost, p1, p2, p3 = unpacked('<c4c1dddd', ARGV[2])
  if kind == 'q\0\0\0' then
    local key, now, margin = KEYS[1], tonumber(ARGV[1]), 60000
    if now == 0 then
      local time = redis.call('TIME')
      now, margin = time[1] * 1000000 + time[2], 1000
    end
    local raw = redis.call('GET', key)
    local known, clears, left, wait, kept = true, now, 0, 0, nil

    if shape == 'b' then
      local tat, behind, rem, per, last = 0, 0, 0, p2, 0
      if raw then
        if #raw == 14 then
          tat, behind = unpacked('<I7i7', raw)
        elseif #raw == 28 then
          tat, behind, rem, per = unpacked('<I7i7I7I7', raw)
        end
        known, last = tat > 0 and per == p2, tat - behind
      end
      if tat < now or (tat == now and rem == 0) then tat, rem, last = now, 0, 0 end
      local need, room = cost * p1, p3 * p1 - rem - (tat - now) * p2
      if cost > p3 then
        wait = -1
      elseif need > room then
        wait = tat - floor((p3 * p1 - need - rem) / p2) - now
      elseif cost > 0 then
        local whole = floor((rem + need) / p2)
        tat, rem, room = tat + whole, rem + need - whole * p2, room - need
        if last < now then last = now end
        if rem > 0 then
          kept = packed('<I7i7I7I7', tat, tat - last, rem, p2)
        else
          kept = packed('<I7i7', tat, tat - last)
        end
      end
      clears = rem > 0 and tat + 1 or tat
      if room > 0 then left = floor(room / p1) end
    else
      local layout, live, newest, units, base, from, oldest = 1, 0, 0, 0, 0, 30, 0
      if raw then
        layout, live, newest, units, base = unpacked('<BI7I7I7I7', raw)
        known, oldest = layout == 1, newest
        local gone = now - p2
        if newest <= gone then
          live = 0
        elseif known then
          while from <= #raw do
            local offset, spent = unpacked('<I4I3', raw, from)
            oldest = base + offset
            if oldest > gone then break end
            live, from, oldest = live - spent, from + 7, newest
          end
        end
      end
      if known then
        local excess = cost - p1 + live
        if cost > p1 then
          wait = -1
        elseif excess > 0 then
          local freed, spent, i = newest, units, from
          while true do
            if i > #raw then
              freed, spent = newest, units
            else
              local offset
              offset, spent = unpacked('<I4I3', raw, i)
              freed = base + offset
            end
            if excess <= spent then break end
            excess, i = excess - spent, i + 7
          end
          wait = freed + p2 - now
        elseif cost > 0 then
          local place, older = now - now % p3 + p3 - 1, ''
          if live == 0 then
            known, base, units = cost < 16777216, place, cost
          elseif place == newest then
            units, older = units + cost, string.sub(raw, from)
          else
            local offset = newest - base
            known = place > newest and offset < 4294967296 and units < 16777216
            if known then older, units = string.sub(raw, from) .. packed('<I4I3', offset, units), cost end
          end
          live, newest = live + cost, place
          if known then kept = packed('<BI7I7I7I7', 1, live, newest, units, base) .. older end
        end
        if newest > 0 and newest + p2 > now then clears = newest + p2 end
        if live < p1 then left = p1 - live end
      end
    end

    if known then
      if kept then
        local ttl = math.ceil((clears - now) / 1000) + margin
        redis.call('SET', key, kept, 'PX', string.format('%d', ttl))
      end
      return {packed('<i8i8i8i8', now, left, clears - now, wait)}
    end
  end
end

