"""`octfm finetune`: an encoder and a head, trained together on a label; scored on patients that they have not seen."""
