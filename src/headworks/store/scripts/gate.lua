-- Breaker and cool-down, as headworks.limits.breaker has them: states, moves and why stand there.
-- This file is put in front of the scripts that need it; by itself it does nothing.
--
-- Kept under a gate's key, packed with cmsgpack:
--   epoch, open_until, cool_until, successes, numbered, passed, passed_at, back, number of counts,
--   then per count: sub-bucket, good, bad; then per probe under way: number, its lease's end
--
-- Rules r: {failure_ratio, min_calls, window_us, open_us, probes, probe_us}. Times: microseconds.

local function make_gate()
  local OK, BAD, IGNORED = 1, 2, 3  -- endings; any other says nothing about the vendor
  local OPEN, COOL_DOWN = 1, 2      -- why a gate is shut
  local FAILED = 4                  -- as bad, but the vendor let it in: what a slow start waits for
  local SUB_BUCKETS, SLOW_START, STEP, SOON = 10, 16, 1000000, 250000
  local REMEMBERED = 3600000000

  local gate = {}

  function gate.pack(s)
    local v = {s.epoch, s.open, s.cool, s.successes, s.numbered, s.passed, s.passed_at, s.back, #s.counts}
    for _, count in ipairs(s.counts) do
      for part = 1, 3 do table.insert(v, count[part]) end
    end
    for _, probe in ipairs(s.probes) do
      table.insert(v, probe[1])
      table.insert(v, probe[2])
    end
    return cmsgpack.pack(unpack(v))
  end

  -- When the state may be dropped.
  function gate.clears(s, r, now)
    local moves = max(now + r[3], s.cool, s.open)
    for _, probe in ipairs(s.probes) do moves = max(moves, probe[2]) end
    return moves + REMEMBERED
  end

  function gate.read(raw, now)
    local s = {open = 0, cool = 0, successes = 0, numbered = 0, counts = {}, probes = {},
               passed = 0, passed_at = 0, back = 0}
    if not raw then
      s.epoch, s.new = floor(now / 1000), true
      return s
    end
    local v = {cmsgpack.unpack(raw)}
    s.epoch, s.open, s.cool, s.successes, s.numbered = v[1], v[2], v[3], v[4], v[5]
    s.passed, s.passed_at, s.back = v[6], v[7], v[8]
    local i = 10
    for n = 1, v[9] do
      s.counts[n] = {v[i], v[i + 1], v[i + 2]}
      i = i + 3
    end
    while v[i] do
      table.insert(s.probes, {v[i], v[i + 1]})
      i = i + 2
    end
    return s
  end

  local function under_way(s, now, except)
    local left = {}
    for _, probe in ipairs(s.probes) do
      if probe[2] > now and probe[1] ~= except then table.insert(left, probe) end
    end
    return left
  end

  -- Why nothing passes (0: something does), µs until asking again is worth it, probe number or 0.
  function gate.admit(s, r, now)
    if s.cool > now then return COOL_DOWN, s.cool - now, 0 end
    if s.open == 0 then
      local forgotten = s.passed_at + r[6] <= now
      if s.cool > 0 and not forgotten and s.passed > 2 * s.back then
        local due = s.passed_at + floor(STEP / s.passed)
        if due > now then return COOL_DOWN, min(due - now, SOON), 0 end
      end
      return 0, 0, 0
    end
    if s.open > now then return OPEN, s.open - now, 0 end
    local probes = under_way(s, now)
    if s.successes + #probes >= r[5] then
      local wait
      for _, probe in ipairs(probes) do wait = min(wait or probe[2] - now, probe[2] - now) end
      return OPEN, max(wait or 1, 1), 0
    end
    return 0, 0, s.numbered + 1
  end

  -- A call passes in slow start.
  function gate.pass(s, r, now, sent)
    if s.open > 0 then return end
    if s.passed_at + r[6] <= now then s.passed, s.back = 0, 0 end
    s.passed, s.passed_at = s.passed + 1, sent
  end

  function gate.lease(s, r, now, sent)
    s.probes, s.numbered = under_way(s, now), s.numbered + 1
    table.insert(s.probes, {s.numbered, sent + r[6]})
  end

  local function opened(s, r, now)
    s.epoch, s.open, s.successes, s.counts, s.probes = s.epoch + 1, now + r[4], 0, {}, {}
  end

  local function counted(s, r, now, ending)
    local width = max(1, math.ceil(r[3] / SUB_BUCKETS))
    local current, calls, bad, counts = floor(now / width), 0, 0, {}
    for _, count in ipairs(s.counts) do
      if count[1] > current - SUB_BUCKETS then table.insert(counts, count) end
    end
    if #counts == 0 or counts[#counts][1] ~= current then table.insert(counts, {current, 0, 0}) end
    local latest = counts[#counts]
    latest[ending + 1] = latest[ending + 1] + 1
    for _, count in ipairs(counts) do
      calls, bad = calls + count[2] + count[3], bad + count[3]
    end
    s.counts = counts
    if calls >= r[2] and bad >= r[1] * calls then opened(s, r, now) end
  end

  local function came_back(s, ending)
    if ending == IGNORED then
      s.passed = max(s.passed - 1, 0)
    elseif ending == OK or ending == FAILED then
      s.back = s.back + 1
      if s.back >= SLOW_START then s.cool, s.passed, s.passed_at, s.back = 0, 0, 0, 0 end
    end
  end

  function gate.ended(s, r, now, ending, epoch, probe, cool_down)
    if s.cool > 0 and cool_down <= 0 and epoch >= s.epoch then came_back(s, ending) end
    if ending == FAILED then ending = BAD end
    local leased = false
    if probe > 0 then
      for _, held in ipairs(s.probes) do leased = leased or (held[1] == probe and held[2] > now) end
      s.probes = under_way(s, now, probe)
    end
    if (ending ~= OK and ending ~= BAD) or epoch < s.epoch then return end
    if s.open == 0 then return counted(s, r, now, ending) end
    if not leased or s.open > now then return end
    if ending == BAD then return opened(s, r, now) end
    s.successes = s.successes + 1
    if s.successes >= r[5] then
      s.epoch, s.open, s.successes, s.counts, s.probes = s.epoch + 1, 0, 0, {}, {}
    end
  end

  function gate.cool_down(s, now, length)
    if length > 0 and now + length > s.cool then
      s.cool, s.epoch = now + length, s.epoch + 1
      s.passed, s.passed_at, s.back = 0, 0, 0
    end
  end

  return gate
end
