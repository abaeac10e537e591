-- The two shapes of a limit, as headworks.limits.bucket and headworks.limits.window have them: the
-- formulas, their units and why they are right stand there. This file is put in front of the scripts
-- that need it; by itself it does nothing.
--
-- Numbers are doubles: whole and below 2^53. They leave as whole numbers only, through %d or struct.
-- Times are microseconds. States are arrays with named places, since a table with names costs more
-- than the arithmetic; every key is read and written at most once in a call (see `held`).
--
-- Kept under a key, packed with struct, little-endian, In: n bytes
--   bucket  I7 TAT, i7 TAT - last spending [, I7 rem, I7 per]   TAT's fraction rem/per, if there is one
--           then, once something has been given back, I7 since, I7 low of one or two marks, newer first
--   window  B layout, I7 all units, I7 newest end, I7 its units, I7 base; then per older sub-bucket,
--           oldest first: end - base, units, as layout 1 (I4 I3) or 2 (I7 I7)
--
-- A shape's numbers p: bucket {pace_us, pace_per, burst}, window {limit, period_us, grain_us}.

local floor, max, min, sub = math.floor, math.max, math.min, string.sub
local packed, unpacked = struct.pack, struct.unpack

-- Each shape is made when a call first meets it: making functions is most of what a short script costs.
local function make_bucket()
  local bucket = {}
  local TAT, LAST, REM, PER = 1, 2, 3, 4
  local SINCE, LOW, SINCE2, LOW2, UNTOUCHED = 5, 6, 7, 8, 2 ^ 52 -- marks: the newer, the older

  function bucket.read(raw, now)
    if raw then
      local tat, behind, rem, per
      if #raw == 14 then
        tat, behind = unpacked('<I7i7', raw)
        rem, per = 0, 1
      else
        tat, behind, rem, per = unpacked('<I7i7I7I7', raw)
      end
      if tat > now or (tat == now and rem > 0) then
        local s = {tat, tat - behind, rem, per}
        if #raw > 28 then s[SINCE], s[LOW] = unpacked('<I7I7', raw, 29) end
        if #raw > 42 then s[SINCE2], s[LOW2] = unpacked('<I7I7', raw, 43) end
        return s
      end
    end
    return {0, 0, 0, 1}
  end

  function bucket.pack(s)
    if s[SINCE] then
      local marks = packed('<I7I7', s[SINCE], s[LOW])
      if s[SINCE2] then marks = marks .. packed('<I7I7', s[SINCE2], s[LOW2]) end
      return packed('<I7i7I7I7', s[TAT], s[TAT] - s[LAST], s[REM], s[PER]) .. marks
    end
    if s[REM] > 0 then return packed('<I7i7I7I7', s[TAT], s[TAT] - s[LAST], s[REM], s[PER]) end
    return packed('<I7i7', s[TAT], s[TAT] - s[LAST])
  end

  local function base(s, p, t)
    local tat, rem = s[TAT], s[REM]
    if tat < t then return t, 0 end
    if rem > 0 and s[PER] ~= p[2] then return tat + 1, 0 end
    return tat, rem
  end

  local function move(s, tat, parts, p)
    local whole = floor(parts / p[2])
    local rem = parts - whole * p[2]
    s[TAT], s[REM], s[PER] = tat + whole, rem, rem > 0 and p[2] or 1
  end

  function bucket.earliest(s, p, cost, t)
    if cost > p[3] then return -1 end
    local tat, rem = base(s, p, t)
    return max(t, tat - floor(((p[3] - cost) * p[1] - rem) / p[2]))
  end

  local function mark(s, t)
    local backlog, last = s[TAT] - t, s[LAST]
    if backlog <= 0 then
      s[SINCE], s[LOW], s[SINCE2], s[LOW2] = last, UNTOUCHED, nil, nil
      return
    end
    if s[SINCE2] then s[LOW2] = min(s[LOW2], backlog) end
    if s[SINCE] == last then return end
    if 2 * s[LOW] < backlog then
      s[SINCE2], s[LOW2], s[SINCE], s[LOW] = s[SINCE], s[LOW], last, UNTOUCHED
    else
      s[LOW] = min(s[LOW], backlog)
    end
  end

  function bucket.spend(s, p, cost, t)
    if s[SINCE] then mark(s, t) end
    local tat, rem = base(s, p, t)
    move(s, tat, rem + cost * p[1], p)
    if t > s[LAST] then s[LAST] = t end
  end

  function bucket.remaining(s, p, t)
    local tat, rem = base(s, p, t)
    local room = p[3] * p[1] - rem - (tat - t) * p[2]
    if room <= 0 then return 0 end
    return floor(room / p[1])
  end

  function bucket.clears(s, _, t)
    return max(t, s[TAT] + (s[REM] > 0 and 1 or 0))
  end

  function bucket.correct(s, p, units, at, now)
    local last = max(s[LAST], at)
    if units >= 0 then
      if units > 0 then bucket.spend(s, p, units, now) end
      s[LAST] = last
    elseif s[TAT] >= now then
      local back, known = -units * p[1], 0
      if s[SINCE] and at > s[SINCE] then
        known = s[LOW]
      elseif s[SINCE2] and at > s[SINCE2] then
        known = s[LOW2]
      end
      back = max(back - max(0, s[LAST] - at) * p[2], min(back, known * p[2]))
      if s[SINCE] then
        local less = -floor(-back / p[2])
        s[LOW] = max(0, s[LOW] - less)
        if s[SINCE2] then s[LOW2] = max(0, s[LOW2] - less) end
      else
        s[SINCE], s[LOW] = s[LAST], UNTOUCHED
      end
      if back > 0 then
        local tat, rem = base(s, p, now)
        move(s, tat, rem - back, p)
      end
    end
  end

  return bucket
end

-- A window keeps its older sub-buckets as the string they came in and adds to it; only what is out of
-- the ordinary (a booking before a later one, a correction) takes them apart.
--   END, UNITS   the newest sub-bucket              OLDER   the others; they begin at START
--   ALL          units of all from START            FROM, LIVE, OLDEST   the first that counts in
--   LAYOUT, BASE of OLDER                                   PERIOD, the units from there, its end
local function make_window()
  local window = {}
  local ALL, END, UNITS, LAYOUT, BASE, OLDER = 1, 2, 3, 4, 5, 6
  local START, FROM, LIVE, OLDEST, PERIOD = 7, 8, 9, 10, 11
  local LAYOUTS, SIZES = {'<I4I3', '<I7I7'}, {7, 14}
  local HEAD = string.rep(' ', 29) -- in front of OLDER, where a kept window has its first five numbers
  local OFFSETS, COUNTS = 2 ^ 32, 2 ^ 24

  function window.read(raw)
    if not raw then return {0, 0, 0, 1, 0, HEAD, 30, 30, 0, 0, 0} end
    local layout, all, newest, units, from = unpacked('<BI7I7I7I7', raw)
    return {all, newest, units, layout, from, raw, 30, 30, all, 0, 0}
  end

  function window.pack(s)
    return packed('<BI7I7I7I7', s[LAYOUT], s[ALL], s[END], s[UNITS], s[BASE]) .. sub(s[OLDER], s[START])
  end

  local function entry(s, i)
    if i > #s[OLDER] then return s[END], s[UNITS] end
    local offset, units = unpacked(LAYOUTS[s[LAYOUT]], s[OLDER], i)
    return s[BASE] + offset, units
  end

  -- Let LIVE be what counts at t.
  local function count(s, p, t)
    if s[PERIOD] ~= p[2] then
      s[PERIOD], s[FROM], s[LIVE], s[OLDEST] = p[2], s[START], s[ALL], (entry(s, s[START]))
    end
    local gone = t - p[2]
    while s[OLDEST] <= gone and s[LIVE] > 0 do
      local _, units = entry(s, s[FROM])
      s[LIVE], s[FROM] = s[LIVE] - units, s[FROM] + SIZES[s[LAYOUT]]
      s[OLDEST] = entry(s, s[FROM])
    end
  end

  -- What counts, as {end, units, end, units, ...}.
  local function taken_apart(s)
    local log, i = {}, s[FROM]
    if s[LIVE] == 0 then return log end
    repeat
      log[#log + 1], log[#log + 2] = entry(s, i)
      i = i + SIZES[s[LAYOUT]]
    until i > #s[OLDER] + SIZES[s[LAYOUT]]
    return log
  end

  local function put_together(s, log, p)
    local n, all, most = #log, 0, 0
    for i = 2, n, 2 do all, most = all + log[i], max(most, log[i]) end
    s[LAYOUT] = (n > 0 and log[n - 1] - log[1] >= OFFSETS / 2 or most >= COUNTS) and 2 or 1
    s[ALL], s[LIVE], s[BASE], s[OLDEST] = all, all, log[1] or 0, log[1] or 0
    s[END], s[UNITS], s[START], s[FROM], s[PERIOD] = log[n - 1] or 0, log[n] or 0, 30, 30, p[2]
    local parts = {HEAD}
    for i = 1, n - 2, 2 do
      parts[#parts + 1] = packed(LAYOUTS[s[LAYOUT]], log[i] - s[BASE], log[i + 1])
    end
    s[OLDER] = table.concat(parts)
  end

  local function insert(s, p, newest, units)
    local log = taken_apart(s)
    local i = #log - 1
    while i > 0 and log[i] > newest do i = i - 2 end
    if i > 0 and log[i] == newest then
      log[i + 1] = log[i + 1] + units
    else
      table.insert(log, i + 2, newest)
      table.insert(log, i + 3, units)
    end
    put_together(s, log, p)
  end

  local function end_of(p, at)
    return at - at % p[3] + p[3] - 1
  end

  function window.earliest(s, p, cost, t)
    if cost > p[1] then return -1 end
    count(s, p, t)
    local excess = cost - p[1] + s[LIVE]
    if excess <= 0 then return t end
    local i = s[FROM]
    local freed, units = entry(s, i)
    while excess > units do
      excess, i = excess - units, i + SIZES[s[LAYOUT]]
      freed, units = entry(s, i)
    end
    return freed + p[2]
  end

  function window.spend(s, p, cost, t, now)
    count(s, p, now)
    local newest = end_of(p, t)
    if s[LIVE] == 0 then return put_together(s, {newest, cost}, p) end
    if newest < s[END] then return insert(s, p, newest, cost) end
    if newest == s[END] then
      s[UNITS] = s[UNITS] + cost
    else
      local offset = s[END] - s[BASE]
      if s[LAYOUT] == 1 and (offset >= OFFSETS or s[UNITS] >= COUNTS) then
        return insert(s, p, newest, cost)
      end
      s[OLDER] = s[OLDER] .. packed(LAYOUTS[s[LAYOUT]], offset, s[UNITS])
      s[END], s[UNITS] = newest, cost
    end
    s[LIVE] = s[LIVE] + cost
    s[ALL], s[START] = s[LIVE], s[FROM]
  end

  function window.remaining(s, p, t)
    count(s, p, t)
    return max(0, p[1] - s[LIVE])
  end

  function window.clears(s, p, t)
    return max(t, s[END] + p[2])
  end

  function window.correct(s, p, units, at, now)
    count(s, p, now)
    s[START], s[ALL] = s[FROM], s[LIVE]
    local place = end_of(p, at)
    if place <= now - p[2] then return end
    if units > 0 then return insert(s, p, place, units) end
    local log = taken_apart(s)
    for i = 1, #log, 2 do
      if log[i] == place then
        log[i + 1] = log[i + 1] + units
        if log[i + 1] <= 0 then
          table.remove(log, i)
          table.remove(log, i)
        end
        break
      end
    end
    put_together(s, log, p)
  end

  return window
end

local bucket, window

local function shape_named(kind)
  if kind == 'b' then
    bucket = bucket or make_bucket()
    return bucket
  end
  window = window or make_window()
  return window
end
