-- The two shapes of a limit, as headworks.limits.bucket and headworks.limits.window have them: the
-- formulas, their units and why they are right stand there. This file is put in front of the scripts
-- that need it; by itself it does nothing.
--
-- Numbers are doubles: whole, below 2^53, and they leave only through %d or cmsgpack (which keeps
-- whole numbers whole). Times are microseconds.
--
-- Kept under a key, packed with cmsgpack:
--   bucket  TAT, TAT - last spending [, rem, per]            TAT's fraction rem/per, where there is one
--   window  end, units [, end - previous end, units] ...     oldest sub-bucket first
--
-- A shape's numbers p: bucket {pace_us, pace_per, burst}, window {limit, period_us, grain_us}.

local floor, max, min = math.floor, math.max, math.min

-- The time of the server, or the time given by a test; a given one may run slower than the
-- server's, so keys then live a minute longer than they need, else a second.
local function clock(given)
  if given > 0 then return given, 60000 end
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2], 1000
end

local function keep(key, packed, clears, now, margin)
  local ttl = max(1, math.ceil((clears - now) / 1000) + margin)
  redis.call('SET', key, packed, 'PX', string.format('%d', ttl))
end

local bucket = {}

function bucket.read(raw, now)
  if raw then
    local tat, behind, rem, per = cmsgpack.unpack(raw)
    local s = {tat = tat, last = tat - behind, rem = rem or 0, per = per or 1}
    if bucket.clears(s, nil, now) > now then return s end
  end
  return {tat = 0, last = 0, rem = 0, per = 1}
end

function bucket.pack(s)
  if s.rem > 0 then return cmsgpack.pack(s.tat, s.tat - s.last, s.rem, s.per) end
  return cmsgpack.pack(s.tat, s.tat - s.last)
end

local function base(s, p, t)
  if s.tat < t then return t, 0 end
  if s.rem > 0 and s.per ~= p[2] then return s.tat + 1, 0 end
  return s.tat, s.rem
end

local function move(s, tat, parts, p)
  local whole = floor(parts / p[2])
  s.tat, s.rem = tat + whole, parts - whole * p[2]
  s.per = s.rem > 0 and p[2] or 1
end

function bucket.earliest(s, p, cost, t)
  if cost > p[3] then return -1 end
  local tat, rem = base(s, p, t)
  return max(t, tat - floor(((p[3] - cost) * p[1] - rem) / p[2]))
end

function bucket.spend(s, p, cost, t)
  local tat, rem = base(s, p, t)
  move(s, tat, rem + cost * p[1], p)
  s.last = max(t, s.last)
end

function bucket.remaining(s, p, t)
  local tat, rem = base(s, p, t)
  local room = p[3] * p[1] - rem
  if (tat - t) * p[2] >= room then return 0 end
  return floor((room - (tat - t) * p[2]) / p[1])
end

function bucket.clears(s, p, t)
  return max(t, s.tat + (s.rem > 0 and 1 or 0))
end

function bucket.correct(s, p, units, at, now)
  local last = max(s.last, at)
  if units >= 0 then
    if units > 0 then bucket.spend(s, p, units, now) end
    s.last = last
  elseif s.tat >= now then
    local back = -units * p[1] - max(0, s.last - at) * p[2]
    if back > 0 then
      local tat, rem = base(s, p, now)
      move(s, tat, rem - back, p)
    end
  end
end

local window = {}

function window.read(raw)
  if not raw then return {} end
  local log = {cmsgpack.unpack(raw)}
  for i = 3, #log, 2 do log[i] = log[i] + log[i - 2] end
  return log
end

function window.pack(log)
  local flat = {log[1], log[2]}
  for i = 3, #log, 2 do flat[i], flat[i + 1] = log[i] - log[i - 2], log[i + 1] end
  return cmsgpack.pack(unpack(flat))
end

-- Index of the first entry that counts at t, and the units of all that do.
local function counting(log, p, t)
  local first, units = 1, 0
  while log[first] and log[first] <= t - p[2] do first = first + 2 end
  for i = first + 1, #log, 2 do units = units + log[i] end
  return first, units
end

local function drop(log, p, now)
  local first = counting(log, p, now)
  for _ = 2, first do table.remove(log, 1) end
end

local function add(log, sub_bucket, units)
  local i = #log - 1
  while i > 0 and log[i] > sub_bucket do i = i - 2 end
  if i > 0 and log[i] == sub_bucket then
    log[i + 1] = log[i + 1] + units
  else
    table.insert(log, i + 2, sub_bucket)
    table.insert(log, i + 3, units)
  end
end

local function end_of(p, at)
  return at - at % p[3] + p[3] - 1
end

function window.earliest(log, p, cost, t)
  if cost > p[1] then return -1 end
  local i, units = counting(log, p, t)
  local excess = cost - p[1] + units
  if excess <= 0 then return t end
  while excess > log[i + 1] do
    excess = excess - log[i + 1]
    i = i + 2
  end
  return log[i] + p[2]
end

function window.spend(log, p, cost, t, now)
  drop(log, p, now)
  add(log, end_of(p, t), cost)
end

function window.remaining(log, p, t)
  local _, units = counting(log, p, t)
  return max(0, p[1] - units)
end

function window.clears(log, p, t)
  if #log == 0 then return t end
  return max(t, log[#log - 1] + p[2])
end

function window.correct(log, p, units, at, now)
  drop(log, p, now)
  local sub_bucket = end_of(p, at)
  if sub_bucket <= now - p[2] then return end
  if units > 0 then return add(log, sub_bucket, units) end
  for i = 1, #log, 2 do
    if log[i] == sub_bucket then
      log[i + 1] = log[i + 1] + units
      if log[i + 1] <= 0 then
        table.remove(log, i)
        table.remove(log, i)
      end
      return
    end
  end
end

local shapes = {b = bucket, w = window}
