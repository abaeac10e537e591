-- Forget all that is kept under some keys.
--
-- KEYS   the keys, all on one slot
-- ARGV   1 now_us, which changes nothing here
-- Returns how many there were
-- Clock  none
-- Cost   1 DEL

return redis.call('DEL', unpack(KEYS))
