// Blind listening tests in a panel: ABX, rating with a hidden reference and anchor, preference.
"use strict";

(() => {
  const { element, choice, generator, shuffled, ratings } = listeningPage;
  const MOST = 8; // versions in a rating; more cannot be told apart in one sitting
  const PREFERENCES = ["A is much better", "A is better", "no difference", "B is better", "B is much better"];
  const WORDS = "0 bad · 25 poor · 50 fair · 75 good · 100 excellent";

  const newSeed = () => Math.floor(Math.random() * 4294967296);
  const field = (text, input) => element("label", {}, text, input);
  const act = (text, onclick, kind = "main") => element("button", { type: "button", class: kind, onclick }, text);
  const number = (value, min, max) => element("input", { type: "number", value: String(value), min: String(min), max: String(max), step: "1" });
  const say = (text) => element("p", { role: "status", class: "result" }, text);

  // Two versions to choose; by default the reference (or the first) and the last.
  const pair = (panel) => {
    const select = (chosen) => element("select", {}, ...panel.versions.map((one, i) => element("option", { value: String(i), selected: i === chosen }, one.label)));
    const reference = Math.max(0, panel.versions.findIndex((one) => one.role === "reference"));
    const last = panel.versions.length - 1;
    return [select(reference === last ? 0 : reference), select(last)];
  };
  const press = (buttons, index) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === index)));

  const abx = (panel) => {
    const place = element("div", { class: "test" });
    const [selectA, selectB] = pair(panel);
    const count = number(10, 1, 100);
    const seed = number(newSeed(), 0, 4294967295);
    let keys = () => false;

    const setUp = (note = "") => {
      keys = () => false;
      place.replaceChildren(
        element("p", {}, "X is A or B, drawn anew for every trial. Say which; you learn the result at the end."),
        element("div", { class: "fields" }, field("A", selectA), field("B", selectB), field("Trials", count), field("Seed", seed)),
        act("Start", start), ...(note ? [say(note)] : []));
    };

    const start = () => {
      const [a, b] = [Number(selectA.value), Number(selectB.value)];
      if (a === b) return setUp("A and B are the same version: choose another one.");
      const total = Math.min(100, Math.max(1, Math.round(Number(count.value)) || 10));
      const used = Number(seed.value) >>> 0;
      const random = generator(used);
      const drawn = Array.from({ length: total }, () => (random() < 0.5 ? "a" : "b"));
      const trials = [];
      const matched = panel.player.matched;
      const title = element("p", { role: "status" });
      const sounds = () => [a, b, drawn[trials.length] === "a" ? a : b];
      const hear = (index) => { press(buttons, index); panel.hear(sounds()[index]); };
      const buttons = ["A", "B", "X"].map((name, i) => choice(name, "", () => hear(i)));
      const answer = (name) => {
        trials.push({ x: drawn[trials.length], answer: name });
        if (trials.length === total) return finish();
        panel.player.stop();
        next();
      };
      const next = () => { press(buttons, -1); title.textContent = `Trial ${trials.length + 1} of ${total}`; };
      const finish = () => {
        panel.player.stop();
        const right = trials.filter((trial) => trial.x === trial.answer).length;
        const p = listeningPage.guessing(right, total);
        const [nameA, nameB] = [panel.versions[a].label, panel.versions[b].label];
        ratings.add({ kind: "abx", row: panel.row, a: nameA, b: nameB, seed: used, matched, trials, correct: right, count: total, p });
        seed.value = String(newSeed());
        setUp(`${right} of ${total} right; by guessing at least that many have probability p = ${p.toPrecision(3)}. ` +
          (p < 0.05 ? "You hear a difference." : "No difference was shown."));
      };
      place.replaceChildren(title,
        element("div", { class: "choices", role: "group", "aria-label": "Listen" }, ...buttons),
        element("div", { class: "choices", role: "group", "aria-label": "Answer" },
          ...["a", "b"].map((name, i) => choice(`X is ${name.toUpperCase()}`, String(i + 1), () => answer(name)))),
        act("Give up", () => { panel.player.stop(); setUp(); }, "plain"));
      keys = (key) => {
        const index = ["a", "b", "x"].indexOf(key);
        if (index >= 0) hear(index);
        else if (key === "1" || key === "2") answer(key === "1" ? "a" : "b");
        else return false;
        return true;
      };
      next();
    };

    setUp();
    return { element: place, keys: (key) => keys(key) };
  };

  const rate = (panel) => {
    const place = element("div", { class: "test" });
    const all = panel.anchor ? [...panel.versions, panel.anchor] : panel.versions;
    const spread = all.length <= MOST ? all.map((_, i) => i) : Array.from({ length: MOST }, (_, i) => Math.round((i * (all.length - 1)) / (MOST - 1)));
    const reference = panel.versions.findIndex((one) => one.role === "reference");
    if (reference >= 0 && !spread.includes(reference)) spread[0] = reference;
    const boxes = all.map((_, i) => element("input", { type: "checkbox", checked: spread.includes(i) }));
    const seed = number(newSeed(), 0, 4294967295);
    let keys = () => false;

    const setUp = (...after) => {
      keys = () => false;
      place.replaceChildren(
        element("p", {}, `Give every version a score; their order is drawn and their names are hidden${reference >= 0 ? ", and the reference is among them" : ""}.`),
        element("fieldset", {}, element("legend", {}, "Versions in the test"), ...all.map((one, i) => element("label", {}, boxes[i], one.label))),
        element("div", { class: "fields" }, field("Seed", seed)), act("Start", start), ...after);
    };

    const start = () => {
      const chosen = all.map((_, i) => i).filter((i) => boxes[i].checked);
      if (chosen.length < 2) return setUp(say("Choose at least two versions."));
      const used = Number(seed.value) >>> 0;
      const order = shuffled(chosen, generator(used));
      const matched = panel.player.matched;
      const hear = (index) => { press(buttons, index); panel.hear(index < order.length ? order[index] : reference); };
      const buttons = order.map((_, i) => choice(`Version ${i + 1}`, i < 9 ? String(i + 1) : "", () => hear(i)));
      if (reference >= 0) buttons.push(choice("Reference", "R", () => hear(order.length)));
      const moved = new Set();
      const outputs = order.map(() => element("output", {}, "–"));
      const sliders = order.map((_, i) => {
        const slider = element("input", { type: "range", min: "0", max: "100", value: "50", "aria-label": `Score of version ${i + 1}` });
        slider.addEventListener("input", () => { moved.add(i); outputs[i].textContent = slider.value; });
        slider.addEventListener("focus", () => { if (buttons[i].getAttribute("aria-pressed") !== "true") hear(i); });
        return slider;
      });
      const note = say("");
      const save = () => {
        if (moved.size < order.length) {
          note.textContent = `${order.length - moved.size} not scored yet: move each slider.`;
          return;
        }
        panel.player.stop();
        const scores = order.map((index, i) => ({ trial: i + 1, version: all[index].label, role: all[index].role, score: Number(sliders[i].value) }));
        ratings.add({ kind: "rating", row: panel.row, seed: used, matched, scores });
        seed.value = String(newSeed());
        const lines = [...scores].sort((a, b) => b.score - a.score).map((one) => element("li", {}, `${one.score}  ${one.version}${one.role ? ` (${one.role})` : ""}`));
        setUp(say("Saved. This is what you heard:"), element("ul", {}, ...lines));
      };
      place.replaceChildren(
        element("p", { class: "quiet" }, WORDS),
        element("div", { class: "scores" }, ...order.map((_, i) => element("div", {}, buttons[i], sliders[i], outputs[i])), ...(reference >= 0 ? [element("div", {}, buttons.at(-1))] : [])),
        act("Save", save), act("Give up", () => { panel.player.stop(); setUp(); }, "plain"), note);
      keys = (key) => {
        if (/^[1-9]$/.test(key) && Number(key) <= order.length) { hear(Number(key) - 1); sliders[Number(key) - 1].focus(); }
        else if (key === "r" && reference >= 0) hear(order.length);
        else return false;
        return true;
      };
    };

    setUp();
    return { element: place, keys: (key) => keys(key) };
  };

  const prefer = (panel) => {
    const place = element("div", { class: "test" });
    const [first, second] = pair(panel);
    const seed = number(newSeed(), 0, 4294967295);
    let keys = () => false;

    const setUp = (note = "") => {
      keys = () => false;
      place.replaceChildren(
        element("p", {}, "Which of two sounds better? Which one is called A is drawn."),
        element("div", { class: "fields" }, field("One", first), field("Other", second), field("Seed", seed)),
        act("Start", start), ...(note ? [say(note)] : []));
    };

    const start = () => {
      if (first.value === second.value) return setUp("Both are the same version: choose another one.");
      const used = Number(seed.value) >>> 0;
      const order = shuffled([Number(first.value), Number(second.value)], generator(used));
      const matched = panel.player.matched;
      const hear = (index) => { press(buttons, index); panel.hear(order[index]); };
      const buttons = ["A", "B"].map((name, i) => choice(name, "", () => hear(i)));
      const answer = (index) => {
        panel.player.stop();
        const [a, b] = order.map((i) => panel.versions[i].label);
        ratings.add({ kind: "preference", row: panel.row, a, b, seed: used, matched, choice: index - 2 });
        seed.value = String(newSeed());
        setUp(`Saved: ${PREFERENCES[index]}. A was “${a}”, B was “${b}”.`);
      };
      place.replaceChildren(
        element("div", { class: "choices", role: "group", "aria-label": "Listen" }, ...buttons),
        element("div", { class: "choices", role: "group", "aria-label": "Answer" }, ...PREFERENCES.map((text, i) => choice(text, String(i + 1), () => answer(i)))),
        act("Give up", () => { panel.player.stop(); setUp(); }, "plain"));
      keys = (key) => {
        if (key === "a" || key === "b") hear(key === "a" ? 0 : 1);
        else if (/^[1-5]$/.test(key)) answer(Number(key) - 1);
        else return false;
        return true;
      };
    };

    setUp();
    return { element: place, keys: (key) => keys(key) };
  };

  listeningPage.tests = { ABX: abx, Rate: rate, Prefer: prefer };
})();
