-- Decide questions, each in full or not at all: gate, then every limit, then consume.
--
-- KEYS   per question: its gate's key, where it has a gate; the key of the reports of demand, where
--        it reports demand; then one key per limit. All on one slot.
-- ARGV   1 now_us (0: the server's time), 2 number of questions, then per question
--          horizon_us, number of limits, demand in thousandths of a unit per second, pod, gated 0|1,
--          the gate's six rules where it is gated (see gate.lua),
--          then per limit: kind b|w, cost, the shape's three numbers (see shapes.lua)
-- Returns per question one string of whole numbers, separated by spaces
--          allowed 0|1, now_us, at_us, again_us (-1: never), epoch, blocked 0|1 open|2 cool-down,
--          probe, demand; then per limit: allowed 0|1, remaining, clears_us, retry_us (-1: never)
-- Clock  the server's; a question sees what the ones before it in the same call have consumed.
-- Cost   1 TIME; per limit 1 GET and, if it consumes, 1 SET; per gate 1 GET; O(sub-buckets) each.

local cursor, next_key = 2, 0

local function argument()
  cursor = cursor + 1
  return ARGV[cursor]
end

local function number()
  return tonumber(argument())
end

local function key()
  next_key = next_key + 1
  return KEYS[next_key]
end

-- Every pod's demand that is not older than ten seconds, together.
local function demanded(where, pod, units, now, margin)
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

local function read_question(now, margin)
  local q = {horizon = number(), limits = {}, demand = 0}
  local count, demand, pod, gated = number(), number(), argument(), number() == 1
  if gated then
    q.gate, q.rules = key(), {number(), number(), number(), number(), number(), number()}
  end
  if demand > 0 then q.demand = demanded(key(), pod, demand, now, margin) end
  for i = 1, count do
    local limit = {key = key(), math = shapes[argument()], cost = number()}
    limit.numbers = {number(), number(), number()}
    q.limits[i] = limit
  end
  return q
end

local function answer(q, now, allowed, at, again, epoch, blocked, probe)
  local format = string.format
  local parts = {format('%d %d %d %d %d %d %d %d', allowed, now, at, again, epoch, blocked, probe, q.demand)}
  if blocked == 0 then
    for i, l in ipairs(q.limits) do
      local fits = l.time >= 0 and l.time <= now + q.horizon
      local retry = (allowed == 1 and 0) or (l.time < 0 and -1) or l.time - now
      local left, clears = l.math.remaining(l.state, l.numbers, now), l.math.clears(l.state, l.numbers, now)
      parts[i + 1] = format('%d %d %d %d', fits and 1 or 0, left, clears, retry)
    end
  end
  return table.concat(parts, ' ')
end

local function decide(q, now, margin)
  local s, probe, epoch = nil, 0, 0
  if q.gate then
    local blocked, wait
    s = gate.read(q.gate, q.rules, now, margin)
    epoch = s.epoch
    blocked, wait, probe = gate.admit(s, q.rules, now)
    if blocked > 0 then return answer(q, now, 0, 0, wait, epoch, blocked, 0) end
  end
  local at, never = now, false
  for _, l in ipairs(q.limits) do
    l.state = l.math.read(redis.call('GET', l.key), now)
    l.time = l.math.earliest(l.state, l.numbers, l.cost, now)
    at, never = max(at, l.time), never or l.time < 0
  end
  if never then return answer(q, now, 0, 0, -1, epoch, 0, 0) end
  if at > now + q.horizon then return answer(q, now, 0, 0, at - now - q.horizon, epoch, 0, 0) end
  if probe > 0 then
    gate.lease(s, q.rules, now, at)
    gate.write(q.gate, s, q.rules, now, margin)
  end
  for _, l in ipairs(q.limits) do
    if l.cost > 0 then
      l.math.spend(l.state, l.numbers, l.cost, at, now)
      keep(l.key, l.math.pack(l.state), l.math.clears(l.state, l.numbers, now), now, margin)
    end
  end
  return answer(q, now, 1, at, 0, epoch, 0, probe)
end

local now, margin = clock(tonumber(ARGV[1]))
local answers = {}
for i = 1, tonumber(ARGV[2]) do
  answers[i] = decide(read_question(now, margin), now, margin)
end
return answers
