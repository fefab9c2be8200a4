import time
def test_it(finished):
    print(finished.outcome)
    from collections import Counter
    for s in finished.told.steps: print(s)
    for r in finished.home.findings.sql("select unit,sign,explanation,rule,input_f1,input_f1_low,floor_f1,verdict from explanations"): print(r)
    for r in finished.home.findings.sql("select unit, status, steps, seconds, cost from investigations"): print(r)
    for r in finished.home.findings.sql("select unit, sign, verdict, reason, q from verdicts"): print(r)
    for r in finished.home.findings.sql("select unit, message,step from failures"): print(r)
    for r in finished.home.findings.sql("select unit, tool, ok, summary, cost->>'seconds' as s from evidence"): print(r)
    print(finished.told.swept[-1])
    from lamplighter.tools.auto import pick_units
    from lamplighter.tools.sweep import find_sweep
    sw=find_sweep(finished.home.path, finished.outcome.units[0].rsplit('/',2)[0])
    print(sw.facts); print(pick_units(sw, 8))
    assert 0
