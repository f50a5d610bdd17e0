import json,time,pytest
from pretraining.finetune.command import main as finetune
def test_x(tmp_path, save_run, prepared_scans, scan_labels):
    save_run(tmp_path/"run")
    for opts in (["--epochs","12","--folds","3","--lr","3e-3","--batch-size","8"],["--epochs","10","--folds","3","--lr","3e-3","--batch-size","4"],["--epochs","12","--folds","2","--lr","5e-3","--batch-size","6","--layer-decay","0.9"]):
        t=time.time()
        finetune([str(tmp_path/"run"),"--data",str(prepared_scans),"--labels",str(scan_labels),"--label","brightness","--kind","regression","--out",str(tmp_path/"o"),*opts])
        m=json.loads((tmp_path/"o/metrics.json").read_text())
        print(opts,m["metrics"]["r2"],m["losses"][0],m["losses"][-1],time.time()-t)
