-- Settle what calls really cost, tell the breaker how a call ended, start a cool-down.
--
-- KEYS   one key per correction, then the gate's key, where there is one. All on one slot.
-- ARGV   1 now_us (0: the server's time), 2 number of corrections, then per correction
--          kind b|w, the shape's three numbers (see shapes.lua), units (more, or negative: less),
--          at_us of the verdict that paid;
--        then, with a gate: its six rules (see gate.lua), ending 0 none|1 ok|2 bad|3 ignored,
--          epoch, probe, cool_down_us
-- Returns one string: the gate's epoch and until when surely nothing passes it, in µs from now
-- Clock  the server's
-- Cost   1 TIME; per correction 1 GET and 1 SET or DEL; per gate 1 GET and at most 1 SET

local now, margin = clock(tonumber(ARGV[1]))
local corrections = tonumber(ARGV[2])
local a = 3

for i = 1, corrections do
  local key, shape = KEYS[i], shapes[ARGV[a]]
  local numbers = {tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])}
  local units, at = tonumber(ARGV[a + 4]), tonumber(ARGV[a + 5])
  local state = shape.read(redis.call('GET', key), now)
  shape.correct(state, numbers, units, at, now)
  local over = shape.clears(state, numbers, now)
  if over > now then
    keep(key, shape.pack(state), over, now, margin)
  else
    redis.call('DEL', key)
  end
  a = a + 6
end

local where = KEYS[corrections + 1]
if not where then return '0 0' end

local r = {}
for i = 1, 6 do r[i] = tonumber(ARGV[a + i - 1]) end
local ending, epoch, probe = tonumber(ARGV[a + 6]), tonumber(ARGV[a + 7]), tonumber(ARGV[a + 8])
local cool_down = tonumber(ARGV[a + 9])
local s = gate.read(where, r, now, margin)
if ending > 0 then gate.ended(s, r, now, ending, epoch, probe) end
gate.cool_down(s, now, cool_down)
if ending > 0 or cool_down > 0 then gate.write(where, s, r, now, margin) end
return string.format('%d %d', s.epoch, max(now, s.cool, s.open) - now)
