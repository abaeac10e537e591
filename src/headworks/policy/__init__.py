"""The policy: one file in which every number stands, parsed and checked once.

`units` reads what people write, `settings` and `vendor_settings` say what there is to set, `load`
reads the file and its overrides, `profiles` holds what is known about vendors, `laws` checks that
the numbers fit together.
"""
