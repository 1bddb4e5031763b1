// Adds to the plain page: buttons that open rows, a filter, an epoch slider for each table, the box of ratings, the keys.
"use strict";

(() => {
  const { element, ratings } = listeningPage;
  const KEYS = [["space", "play, pause"], ["1 – 9", "hear a version"], ["↑ ↓", "the version before, after"], ["← →", "a second back, on"],
    ["L", "loop on, off"], ["[ ]", "loop from here, to here"], ["M", "match levels"], ["A B X", "in tests: listen"],
    ["1 – 5", "in tests: answer"], ["R", "in a rating: the reference"], ["Esc", "close the row"], ["?", "these keys"]];

  // One thing plays at a time.
  document.addEventListener("play", (event) => {
    document.querySelectorAll("audio").forEach((other) => { if (other !== event.target) other.pause(); });
    listeningPage.panel?.player?.pause();
  }, true);

  // A button in every row; one listener for all of them.
  for (const line of document.querySelectorAll("tr[data-row]")) {
    const name = line.querySelector(".name").textContent;
    line.cells[0].append(element("button", { type: "button", class: "open", "aria-expanded": "false", "aria-label": `Compare the versions of ${name}` }, "Compare"));
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.("button.open");
    if (!button) return;
    document.querySelectorAll("audio").forEach((audio) => audio.pause());
    listeningPage.toggle(button, button.closest("tr"));
  });

  // Rows whose name or text holds what was typed.
  const filter = () => {
    const wanted = filterInput.value.trim().toLowerCase();
    for (const line of document.querySelectorAll("tr[data-row]")) {
      line.hidden = !line.cells[0].textContent.toLowerCase().includes(wanted);
      if (line.hidden && listeningPage.panel?.line === line) listeningPage.panel.close();
    }
  };
  const filterInput = element("input", { type: "text", placeholder: "name or text", oninput: filter });

  // Columns of one epoch, in tables that have several.
  for (const table of document.querySelectorAll("table.clips")) {
    const epochs = [...new Set([...table.tHead.querySelectorAll("[data-epoch]")].map((cell) => Number(cell.dataset.epoch)))].sort((a, b) => a - b);
    if (epochs.length < 2) continue;
    const output = element("output", {}, "all");
    const slider = element("input", { type: "range", min: "0", max: String(epochs.length), value: "0", step: "1", "aria-valuetext": "all epochs" });
    slider.addEventListener("input", () => {
      const epoch = epochs[Number(slider.value) - 1];
      output.textContent = epoch === undefined ? "all" : String(epoch);
      slider.setAttribute("aria-valuetext", epoch === undefined ? "all epochs" : `epoch ${epoch}`);
      for (const cell of table.querySelectorAll("[data-epoch]")) cell.hidden = epoch !== undefined && Number(cell.dataset.epoch) !== epoch;
      table.style.setProperty("--columns", [...table.tHead.rows[0].cells].filter((cell) => !cell.hidden).length - 1);
    });
    table.closest(".wide").before(element("label", { class: "epochs" }, "Columns of epoch", slider, output));
  }

  // The ratings.
  const count = element("span", { role: "status" });
  const listener = element("input", { type: "text", value: ratings.listener, maxlength: "80", autocomplete: "off", onchange: () => { ratings.listener = listener.value; } });
  const button = (text, act) => element("button", { type: "button", class: "plain", onclick: act }, text);
  const buttons = [button("Export JSON", () => ratings.exportJson()), button("Export CSV", () => ratings.exportCsv()), button("Delete", () => {
    if (confirm(`Delete ${ratings.all.length} ratings?`)) ratings.clear();
  })];
  const show = () => {
    const number = ratings.all.length;
    count.textContent = `${number} rating${number === 1 ? "" : "s"}${ratings.kept ? "" : " (kept only until this page is closed)"}`;
    buttons.forEach((one) => { one.disabled = !number; });
  };
  ratings.watch(show);
  show();

  const keys = element("dialog", { "aria-label": "Keys" }, element("h2", {}, "Keys"),
    element("dl", {}, ...KEYS.flatMap(([key, text]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, text)])),
    element("button", { type: "button", class: "plain", onclick: () => keys.close() }, "Close"));
  document.addEventListener("keydown", (event) => {
    if (event.key === "?" && !event.target.matches("input[type=text], input[type=number]")) keys.showModal();
  });
  document.body.append(keys);
  document.getElementById("tools").append(
    element("label", {}, "Show rows with", filterInput),
    element("div", { class: "ratings", role: "group", "aria-label": "Ratings" }, element("label", {}, "Listener", listener), count, ...buttons, button("Keys", () => keys.showModal())));
  document.documentElement.classList.add("ready");
})();
