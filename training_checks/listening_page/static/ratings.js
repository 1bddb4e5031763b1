// The ratings of a listener: kept in the browser's storage for this page, exported as JSON and CSV.
"use strict";

(() => {
  const KEY = "listening page " + location.pathname;
  const COLUMNS = ["kind", "time", "listener", "section", "title", "clip", "text", "session", "seed", "matched", "trial",
    "version_a", "version_b", "x", "answer", "version", "role", "score", "choice"];
  const watchers = [];
  let state = { listener: "", ratings: [] };
  let kept = true;

  try {
    const found = JSON.parse(localStorage.getItem(KEY) || "null");
    if (found && Array.isArray(found.ratings)) state = { listener: String(found.listener || ""), ratings: found.ratings };
  } catch {
    kept = false; // a viewer without storage, or what is in it is not ours
  }

  const save = () => {
    try {
      localStorage.setItem(KEY, JSON.stringify(state));
      kept = true;
    } catch {
      kept = false;
    }
    watchers.forEach((watcher) => watcher());
  };

  // One line for every trial, score and choice.
  const lines = (one) => {
    const common = { ...one, clip: one.row.name, text: one.row.text, section: one.row.section, title: one.row.title };
    if (one.kind === "abx") {
      return one.trials.map((trial, i) => ({ ...common, trial: i + 1, version_a: one.a, version_b: one.b, x: trial.x, answer: trial.answer }));
    }
    if (one.kind === "rating") return one.scores.map((score) => ({ ...common, ...score }));
    return [{ ...common, version_a: one.a, version_b: one.b }];
  };

  const download = (name, type, text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };

  listeningPage.ratings = {
    get listener() { return state.listener; },
    set listener(name) { state.listener = name; save(); },
    get all() { return state.ratings; },
    get kept() { return kept; },
    of(row) { return state.ratings.filter((one) => one.row.id === row); },
    watch(watcher) { watchers.push(watcher); },
    add(one) {
      const session = Date.now().toString(36) + "-" + Math.floor(Math.random() * 1e9).toString(36);
      state.ratings.push({ ...one, time: new Date().toISOString(), session });
      save();
    },
    clear() { state.ratings = []; save(); },
    json() {
      const ratings = state.ratings.map((one) => ({ ...one, listener: state.listener }));
      return JSON.stringify({ format: "listening-page-ratings", version: 1, exported: new Date().toISOString(), ratings }, null, 2);
    },
    csv() {
      const rows = state.ratings.flatMap(lines).map((line) => COLUMNS.map((name) => (name === "listener" ? state.listener : line[name])));
      return listeningPage.csv([COLUMNS, ...rows]);
    },
    exportJson() { download("ratings.json", "application/json", this.json()); },
    exportCsv() { download("ratings.csv", "text/csv", this.csv()); },
  };
})();
