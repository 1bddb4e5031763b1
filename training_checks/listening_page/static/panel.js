// The panel of an opened row: loads its audio, plays its versions in sync, holds the listening tests.
"use strict";

(() => {
  const waiting = new Map(); // rows whose script is under way
  let context = null;
  let open = null; // the one open panel

  // An element; children are nodes or texts, never markup.
  listeningPage.element = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== false && value !== null) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const element = listeningPage.element;

  // What a row's script calls.
  listeningPage.receive = (content) => waiting.get(content.id)?.(content);

  const load = (id) => new Promise((resolve, reject) => {
    const script = element("script", { src: `listening_page/rows/${id}.js` });
    const end = (act) => (value) => { waiting.delete(id); script.remove(); act(value); };
    waiting.set(id, end(resolve));
    script.addEventListener("error", end(() => reject(new Error("its script is missing; write the page again"))));
    document.head.append(script);
  });

  const decode = (text) => context.decodeAudioData(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

  const clock = (seconds) => {
    const tenths = Math.max(0, Math.floor(seconds * 10 + 1e-6));
    return `${Math.floor(tenths / 600)}:${String(Math.floor((tenths % 600) / 10)).padStart(2, "0")}.${tenths % 10}`;
  };
  const decibels = (gain) => `${gain < 1 ? "−" : "+"}${Math.abs(20 * Math.log10(gain)).toFixed(1)} dB`;

  // A button that makes something heard; its key stands on it.
  listeningPage.choice = (text, key, act) =>
    element("button", { type: "button", class: "choice", "aria-pressed": "false", onclick: act },
      ...(key ? [element("kbd", { "aria-hidden": "true" }, key)] : []), text);

  class Panel {
    constructor(button, line) {
      this.button = button;
      this.line = line; // the table row that was opened
      this.status = element("p", { role: "status", class: "quiet" }, "Loading…");
      this.body = element("div", { class: "panel-body" });
      this.root = element("section", { class: "panel", tabindex: "-1", "aria-label": `Compare ${line.querySelector(".name").textContent}` }, this.status, this.body);
      this.place = element("tr", { class: "panel-row" }, element("td", { colspan: String(line.cells.length) }, this.root));
      line.after(this.place);
      line.classList.add("opened");
      button.setAttribute("aria-expanded", "true");
    }

    async fill() {
      const content = await load(this.line.dataset.row);
      if (this.closed) return;
      context ??= new AudioContext();
      this.row = { id: content.id, section: content.section, title: content.title, name: content.name, text: content.text };
      this.versions = content.versions.filter((one) => one.audio);
      this.problems = content.versions.filter((one) => !one.audio);
      if (!this.versions.length) throw new Error("none of its clips can be heard");
      this.anchor = content.anchor;
      const all = this.anchor ? [...this.versions, this.anchor] : this.versions;
      const buffers = await Promise.all(all.map((one) => decode(one.audio)));
      for (const one of all) delete one.audio; // the decoded samples suffice
      if (this.closed) return;
      this.player = new listeningPage.Player(context);
      this.player.load(buffers, all.map((one) => one.gain));
      this.player.onended = () => this.show();
      this.build();
      this.status.textContent = this.problems.map((one) => `${one.label}: ${one.problem}.`).join(" ");
      this.root.focus({ preventScroll: true });
      this.root.scrollIntoView({ block: "nearest" });
    }

    build() {
      const player = this.player;
      this.image = element("img", { alt: "" });
      this.head = element("div", { class: "playhead" });
      this.region = element("div", { class: "region", hidden: true });
      this.stage = element("div", { class: "stage", role: "slider", tabindex: "0", "aria-label": "Position in the clip", "aria-valuemin": "0", "aria-valuemax": player.duration.toFixed(1) }, this.image, this.region, this.head);
      this.watchPointer();
      this.playButton = element("button", { type: "button", class: "play", onclick: () => { player.toggle(); this.show(); } }, "Play");
      this.time = element("span", { class: "time" });
      this.loopBox = element("input", { type: "checkbox", onchange: () => this.setLoop(this.loopBox.checked) });
      const bound = (name, value) => element("input", { type: "number", min: "0", max: player.duration.toFixed(2), step: "0.1", value, "aria-label": `Loop ${name}, seconds`, onchange: () => this.setLoop(true) });
      this.from = bound("start", "0");
      this.to = bound("end", player.duration.toFixed(2));
      this.matchBox = element("input", { type: "checkbox", checked: true, onchange: () => { player.setMatched(this.matchBox.checked); this.show(); } });
      this.levelNote = element("span", { class: "quiet level" });
      const volume = element("input", { type: "range", min: "0", max: "1", step: "0.01", value: "1", "aria-label": "Volume", oninput: () => { player.volume.gain.value = volume.value ** 2; } });
      this.tabs = ["Compare", "ABX", "Rate", "Prefer"].map((name) =>
        element("button", { type: "button", "aria-pressed": "false", disabled: name !== "Compare" && this.versions.length < 2 && name !== "Rate", onclick: () => this.enter(name) }, name));
      this.modePlace = element("div", { class: "mode" });
      this.body.replaceChildren(
        element("div", { class: "panel-top" }, element("div", { class: "tabs", role: "group", "aria-label": "What to do" }, ...this.tabs),
          element("button", { type: "button", class: "plain", "aria-label": "Close", onclick: () => this.close() }, "×")),
        this.stage,
        element("div", { class: "transport" }, this.playButton, this.time,
          element("label", {}, this.loopBox, "Loop"), element("span", { class: "bounds" }, this.from, "to", this.to, "s"),
          element("label", {}, this.matchBox, "Match levels"), this.levelNote,
          element("label", { class: "volume" }, "Volume", volume)),
        this.modePlace);
      this.enter("Compare");
      const frame = () => {
        if (this.closed) return;
        this.show();
        requestAnimationFrame(frame);
      };
      frame();
    }

    enter(name) {
      this.mode?.leave?.();
      this.player.stop();
      this.blind = name !== "Compare";
      this.root.classList.toggle("blind", this.blind);
      this.tabs.forEach((tab) => tab.setAttribute("aria-pressed", String(tab.textContent === name)));
      this.mode = name === "Compare" ? this.compare() : listeningPage.tests[name](this);
      this.modePlace.replaceChildren(this.mode.element);
      this.show();
    }

    // Hear a version (the anchor is the one after the last).
    hear(index) {
      this.player.select(index);
      if (this.blind) this.player.play();
      this.show();
    }

    compare() {
      const epochs = [...new Set(this.versions.map((one) => one.epoch).filter((epoch) => epoch !== null))].sort((a, b) => a - b);
      const buttons = this.versions.map((one, i) => listeningPage.choice(one.label, i < 9 ? String(i + 1) : "", () => this.hear(i)));
      const output = element("output", {});
      const slider = element("input", { type: "range", min: "0", max: String(Math.max(0, epochs.length - 1)), step: "1", value: "0", "aria-label": "Epoch" });
      slider.addEventListener("input", () => {
        const now = this.versions[this.player.selected];
        const wanted = this.versions.filter((one) => one.epoch === epochs[Number(slider.value)]);
        const like = wanted.find((one) => one.run === now.run && one.version === now.version) ?? wanted.find((one) => one.version === now.version) ?? wanted[0];
        this.hear(this.versions.indexOf(like));
      });
      const show = () => {
        const now = this.versions[this.player.selected];
        buttons.forEach((button, i) => button.setAttribute("aria-pressed", String(i === this.player.selected)));
        if (now.epoch !== null) slider.value = String(epochs.indexOf(now.epoch));
        output.textContent = now.epoch === null ? "" : String(now.epoch);
        slider.setAttribute("aria-valuetext", `epoch ${output.textContent}`);
      };
      const step = (by) => this.hear((this.player.selected + by + this.versions.length) % this.versions.length);
      return {
        show,
        element: element("div", {},
          epochs.length > 1 ? element("label", { class: "epochs" }, "Epoch", slider, output) : null,
          element("div", { class: "choices", role: "group", "aria-label": "Versions" }, ...buttons),
          element("p", { class: "quiet hint" }, "All versions play at once; the numbers switch between them. Drag over the picture to loop a part. Press ? for the keys.")),
        keys: (key) => {
          if (/^[1-9]$/.test(key) && Number(key) <= this.versions.length) this.hear(Number(key) - 1);
          else if (key === "ArrowUp") step(-1);
          else if (key === "ArrowDown") step(1);
          else return false;
          return true;
        },
      };
    }

    setLoop(on) {
      const player = this.player;
      const start = Math.min(Math.max(0, Number(this.from.value) || 0), player.duration - 0.05);
      const end = Math.min(Math.max(start + 0.05, Number(this.to.value) || player.duration), player.duration);
      [this.from.value, this.to.value] = [start.toFixed(2), end.toFixed(2)];
      this.loopBox.checked = on;
      player.setLoop(on ? [start, end] : null);
      this.show();
    }

    // A click seeks, a drag marks what is looped.
    watchPointer() {
      const at = (event) => {
        const box = this.stage.getBoundingClientRect();
        return Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * this.player.duration;
      };
      let down = null;
      this.stage.addEventListener("pointerdown", (event) => { down = at(event); this.stage.setPointerCapture(event.pointerId); });
      this.stage.addEventListener("pointerup", (event) => {
        if (down === null) return;
        const [start, end] = [down, at(event)].sort((a, b) => a - b);
        down = null;
        if (end - start < 0.02 * this.player.duration) this.player.seek(end);
        else {
          [this.from.value, this.to.value] = [start, end];
          this.setLoop(true);
        }
        this.show();
      });
    }

    show() {
      const { player } = this;
      const part = (seconds) => `${(100 * seconds) / player.duration}%`;
      const now = this.versions[player.selected];
      this.playButton.textContent = player.playing ? "Pause" : "Play";
      this.time.textContent = `${clock(player.position)} / ${clock(player.duration)}`;
      this.head.style.left = part(player.position);
      const second = String(Math.floor(player.position)); // once a second: a screen reader need not hear every frame
      if (this.stage.getAttribute("aria-valuenow") !== second) {
        this.stage.setAttribute("aria-valuenow", second);
        this.stage.setAttribute("aria-valuetext", `${second} of ${Math.round(player.duration)} seconds`);
      }
      this.region.hidden = !player.loop;
      if (player.loop) [this.region.style.left, this.region.style.width] = [part(player.loop[0]), part(player.loop[1] - player.loop[0])];
      const source = now && !this.blind ? `listening_page/pictures/${now.picture}` : "";
      if (this.image.getAttribute("src") !== source) {
        this.image.hidden = !source;
        if (source) this.image.setAttribute("src", source);
        else this.image.removeAttribute("src");
      }
      this.levelNote.textContent = this.blind || !now || now.loudness === null ? "" : `${now.loudness.toFixed(1)} LUFS${player.matched ? `, ${decibels(now.gain)}` : ""}`;
      this.mode?.show?.();
    }

    keys(event) {
      const { key, target } = event;
      const typing = target.matches("input[type=text], input[type=number], select, textarea");
      if (event.ctrlKey || event.metaKey || event.altKey || typing || !this.player) return false;
      const native = target.matches("input[type=range]") && key.startsWith("Arrow");
      if (native) return false;
      if (key === " ") {
        if (target.matches("button:not(.choice):not(.play), a, input[type=checkbox], summary")) return false;
        this.player.toggle();
      } else if (key === "Escape") this.close();
      else if (this.mode.keys(key.length === 1 ? key.toLowerCase() : key)) return true;
      else if (key === "ArrowLeft") this.player.seek(this.player.position - 1);
      else if (key === "ArrowRight") this.player.seek(this.player.position + 1);
      else if (key === "l" || key === "L") this.setLoop(!this.loopBox.checked);
      else if (key === "m" || key === "M") this.matchBox.click();
      else if (key === "[") { this.from.value = this.player.position; this.setLoop(true); }
      else if (key === "]") { this.to.value = this.player.position; this.setLoop(true); }
      else return false;
      if (!this.closed) this.show();
      return true;
    }

    close() {
      this.closed = true;
      this.player?.stop();
      if (this.player) setTimeout((output) => output.disconnect(), 100, this.player.output);
      const inside = this.root.contains(document.activeElement);
      this.place.remove();
      this.line.classList.remove("opened");
      this.button.setAttribute("aria-expanded", "false");
      if (inside) this.button.focus();
      if (open === this) open = null;
    }
  }

  listeningPage.toggle = async (button, line) => {
    const same = open?.line === line;
    open?.close();
    if (same) return;
    const panel = (open = new Panel(button, line));
    try {
      await panel.fill();
    } catch (error) {
      panel.status.textContent = `This row cannot be opened: ${error.message}.`;
    }
  };

  Object.defineProperty(listeningPage, "panel", { get: () => open });
  document.addEventListener("keydown", (event) => {
    if (open && open.keys(event)) event.preventDefault();
  });
})();
