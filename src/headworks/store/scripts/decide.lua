-- Decide questions and take in reports, one after the other: a batch of them in one call.
--
-- KEYS   per question: its gate's key, if gated; the key of the reports of demand, if it reports
--        demand; then one key per limit. Per report: one key per correction; then its gate's key.
--        All on one slot.
-- ARGV   1 now_us (0: the server's time); then per question or report its form, and what follows it.
--        A form is packed with struct, little-endian, and looks the same for all that have the same
--        limits and costs; it is taken apart once per call:
--          question  "q", B gated, B books, B reports demand [, the gate's six rules as d], then per
--                    limit "b" or "w", d cost, 3 d the shape's numbers (see shapes.lua)
--                    followed by: if it books, horizon_us; if it reports demand, the demand in
--                    thousandths of a unit per second, and the pod
--          report    "r", B gated, B 0, B 0 [, the six rules], then per correction "b" or "w", d 0,
--                    3 d the shape's numbers
--                    followed by: per correction units (more, or negative: less) and at_us of the
--                    verdict that paid; if gated, ending 0 none|1 ok|2 bad|3 ignored|4 failed,
--                    epoch, probe,
--                    cool_down_us
-- Returns an array: 1 one string of i8 numbers: now_us; then
--          per question  if gated: blocked 0|1 open|2 cool-down, wait_us, epoch, probe; if it reports
--                        demand: the fleet's; per limit: remaining, reset_us, and in how many µs this
--                        cost fits (-1: never); nothing was consumed if one of these is -1 or above
--                        the horizon, or if it is blocked
--          per report    if gated: its epoch, and for how many µs surely nothing passes
--        then, for every one that failed, its number (from 1) and the error; it has no numbers in 1
-- Clock  the server's; each sees what the ones before it in the same call have consumed.
--        What is plain never comes here: plain.lua, in front, has answered it.
-- Cost   1 TIME, 1 MGET, at most 1 EXISTS; per key that changed 1 SET or DEL, however often it was
--        asked for; per report of demand 3 commands. Per limit O(1); O(sub-buckets) where a window
--        refuses, expires, or takes a correction.

local now, margin = clock(tonumber(ARGV[1]))
local out, used = {packed('<i8', now)}, 1
local gate, rare -- made when first needed

-- States: read from the server once, changed in here, written at the end. A limit, or a gate, that
-- changed a state is {shape, cost, numbers}; the last one's numbers say how long the state is kept.
local raws = KEYS[1] and redis.call('MGET', unpack(KEYS))
local held, changed_by, changed = {}, {}, {}

-- MGET says nothing about a value of another type; GET raises.
local foreign, missing = false, nil
for i = 1, #KEYS do
  if not raws[i] then
    missing = missing or {}
    missing[#missing + 1] = KEYS[i]
  end
end
if missing then foreign = redis.call('EXISTS', unpack(missing)) > 0 end

local function state(i, shape)
  local key = KEYS[i]
  local s = held[key]
  if not s then
    s = shape.read(raws[i] or (foreign and redis.call('GET', key)), now)
    held[key] = s
  end
  return s
end

local function change(key, limit)
  if not changed_by[key] then changed[#changed + 1] = key end
  changed_by[key] = limit
end

local function say(text)
  used = used + 1
  out[used] = text
end

local function taken_apart(text)
  local kind, gated, books, demands, i = unpacked('<c1BBB', text)
  local form = {report = kind == 'r', books = books == 1, demands = demands == 1}
  if gated == 1 then
    gate = gate or make_gate()
    local rules = {unpacked('<dddddd', text, i)}
    form.gate, i = {gate, 0, rules}, rules[7]
  end
  local n = 0
  while i <= #text do
    local shape, cost, p1, p2, p3, after = unpacked('<c1dddd', text, i)
    n, i = n + 1, after
    form[n] = {shape_named(shape), cost, {p1, p2, p3}}
  end
  form.keys, form.arguments = n + gated + demands, books + 2 * demands
  if form.report then form.arguments = 2 * n + 4 * gated end
  return form
end

-- What most calls do without.
local function make_rare()
  local rare = {}

  -- Every pod's demand that is not older than ten seconds, together.
  function rare.demand(where, units, pod)
    redis.call('HSET', where, pod, string.format('%d:%d', units, now))
    redis.call('PEXPIRE', where, string.format('%d', 10000 + margin))
    local reports, total = redis.call('HGETALL', where), 0
    for i = 1, #reports, 2 do
      local reported, at = string.match(reports[i + 1], '(%d+):(%d+)')
      if tonumber(at) <= now - 10000000 then
        redis.call('HDEL', where, reports[i])
      else
        total = total + tonumber(reported)
      end
    end
    return total
  end

  function rare.gate(i, form)
    local s = state(i, gate)
    if s.new then change(KEYS[i], form.gate) end
    return s
  end

  function rare.blocked(form, why, wait, epoch, demand)
    say(packed('<i8i8i8i8', why, wait, epoch, 0))
    if form.demands then say(packed('<i8', demand)) end
    for _ = 1, #form do say(packed('<i8i8i8', 0, 0, 0)) end
  end

  function rare.report(form, k, a)
    local where, s = k + #form, nil
    for i = 1, #form do state(k + i - 1, form[i][1]) end -- what cannot be read fails before it moves
    if form.gate then s = rare.gate(where, form) end
    for i = 1, #form do
      local key, limit = KEYS[k + i - 1], form[i]
      limit[1].correct(held[key], limit[3], tonumber(ARGV[a]), tonumber(ARGV[a + 1]), now)
      change(key, limit)
      a = a + 2
    end
    if not s then return end
    local ending, epoch, probe = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local cool_down, rules = tonumber(ARGV[a + 3]), form.gate[3]
    if ending > 0 then gate.ended(s, rules, now, ending, epoch, probe, cool_down) end
    gate.cool_down(s, now, cool_down)
    if ending > 0 or cool_down > 0 then change(KEYS[where], form.gate) end
    say(packed('<i8i8', s.epoch, max(now, s.cool, s.open) - now))
  end

  return rare
end

-- k: the first of its keys, a: the first of its arguments.
local function question(form, k, a)
  local horizon, demand, s, probe, first = 0, 0, nil, 0, k
  if form.books then
    horizon = tonumber(ARGV[a])
    a = a + 1
  end
  if form.gate then s, first = rare.gate(k, form), k + 1 end
  if form.demands then
    demand = rare.demand(KEYS[first], tonumber(ARGV[a]), ARGV[a + 1])
    first = first + 1
  end
  if s then
    local why, wait
    why, wait, probe = gate.admit(s, form.gate[3], now)
    if why > 0 then return rare.blocked(form, why, wait, s.epoch, demand) end
  end

  local at, never, times = now, false, {}
  for i = 1, #form do
    local limit = form[i]
    local time = limit[1].earliest(state(first + i - 1, limit[1]), limit[3], limit[2], now)
    times[i] = time
    if time > at then at = time elseif time < 0 then never = true end
  end
  local allowed = not never and at <= now + horizon
  if allowed then
    if s and (probe > 0 or s.cool > 0) then
      local pass = probe > 0 and gate.lease or gate.pass
      pass(s, form.gate[3], now, at)
      change(KEYS[k], form.gate)
    end
    for i = 1, #form do
      local limit, key = form[i], KEYS[first + i - 1]
      if limit[2] > 0 then
        limit[1].spend(held[key], limit[3], limit[2], at, now)
        change(key, limit)
      end
    end
  end

  if s then say(packed('<i8i8i8i8', 0, 0, s.epoch, allowed and probe or 0)) end
  if form.demands then say(packed('<i8', demand)) end
  for i = 1, #form do
    local shape, p, l = form[i][1], form[i][3], held[KEYS[first + i - 1]]
    local wait = times[i] < 0 and -1 or times[i] - now
    say(packed('<i8i8i8', shape.remaining(l, p, now), shape.clears(l, p, now) - now, wait))
  end
end

local forms, failures, number, a, k = {}, nil, 0, 2, 1
while ARGV[a] do
  local form, before = forms[ARGV[a]], used
  if not form then
    form = taken_apart(ARGV[a])
    forms[ARGV[a]] = form
    if form.report or form.gate or form.demands then rare = rare or make_rare() end
  end
  number = number + 1
  local done, failure = pcall(form.report and rare.report or question, form, k, a + 1)
  if not done then
    while used > before do out[used], used = nil, used - 1 end
    failures = failures or {}
    failures[#failures + 1] = number
    failures[#failures + 1] = type(failure) == 'table' and failure.err or failure
  end
  a, k = a + 1 + form.arguments, k + form.keys
end

for i = 1, #changed do
  local key = changed[i]
  local shape, p = changed_by[key][1], changed_by[key][3]
  local over = shape.clears(held[key], p, now)
  if over > now then
    keep(key, shape.pack(held[key]), over, now, margin)
  else
    redis.call('DEL', key)
  end
end
if failures then return {table.concat(out), unpack(failures)} end
return {table.concat(out)}
