"use strict";
// The page of a run. Only what is in view is drawn, so that thousands of photos scroll as quickly as ten.
(() => {
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;
  for (const run of data.runs) {
    run.xy = new Int16Array(bytes(run.xy));
    run.score = new Uint8Array(bytes(run.score));
    run.moved = new Int16Array(bytes(run.moved));
  }
  const count = data.photos.length;
  const scale = data.sheets.side / data.frame; // from the frame to a small photo
  const state = {
    run: 0, picked: -1, hidden: new Set(), sort: "order", down: false, size: 144, zoom: 0.3, filter: "",
    order: [], open: -1, names: [], fixes: new Map(),
  };

  // ---- what is kept between visits -------------------------------------------------------------------------------
  // Only for the same photos with the same landmarks, and names only while the page was given the same ones.
  const fixesKey = "uld report " + data.id, namesKey = fixesKey + " " + JSON.stringify(data.names);
  const keep = () => {
    try {
      localStorage.setItem(fixesKey, JSON.stringify([...state.fixes]));
      localStorage.setItem(namesKey, JSON.stringify(state.names));
    } catch { /* a browser may forbid it; the buttons that save still work */ }
  };
  state.names = [...data.names];
  try {
    state.fixes = new Map(JSON.parse(localStorage.getItem(fixesKey) || "[]"));
    state.names = JSON.parse(localStorage.getItem(namesKey)) || state.names;
  } catch { /* as above */ }

  // ---- landmarks -------------------------------------------------------------------------------------------------
  const run = () => data.runs[state.run];
  const named = (k) => (state.run === 0 && state.names[k]) || "landmark" + k;

  // [x, y] in pixels of the frame as the run found it or as it was corrected; null where it is absent.
  function point(photo, k) {
    const fixed = state.run === 0 && state.fixes.get(photo);
    if (fixed && k in fixed) return fixed[k];
    const at = (photo * run().k + k) * 2;
    const x = run().xy[at];
    return x === data.absent ? null : [x / data.fine, run().xy[at + 1] / data.fine];
  }

  function mean(photo, values, valid, unit) {
    let sum = 0, n = 0;
    const of = state.picked >= 0 ? [state.picked] : [...Array(run().k).keys()];
    for (const k of of) {
      const value = values[photo * run().k + k];
      if (valid(value)) { sum += value / unit; n += 1; }
    }
    return n ? sum / n : null;
  }

  const measures = {
    order: ["order of the files", (i) => i, ""],
    confidence: ["confidence", (i) => mean(i, run().score, (v) => v > 0, 255), ""],
    disagreement: ["disagreement when turned or mirrored", (i) => mean(i, run().moved, (v) => v !== data.absent, data.fine), " px"],
    error: ["error", (i) => run().errors && run().errors[i], " %"],
    corrected: ["corrections", (i) => (state.fixes.has(i) ? 1 : 0), ""],
  };
  for (const [name, column] of Object.entries(data.columns)) {
    measures["column " + name] = [name, (i) => {
      const cell = column.cells[i];
      if (cell === null || String(cell).trim() === "") return null;
      return column.numeric ? Number(cell) : String(cell);
    }, ""];
  }

  function reorder() {
    const [, value] = measures[state.sort];
    const wanted = state.filter.toLowerCase();
    const rows = [];
    for (let i = 0; i < count; i++) if (!wanted || data.photos[i].toLowerCase().includes(wanted)) rows.push(i);
    const values = new Map(rows.map((i) => [i, value(i)]));
    const sign = state.down ? -1 : 1;
    rows.sort((a, b) => {
      if (state.picked >= 0) { // photos without the landmark come last
        const gone = (point(a, state.picked) === null) - (point(b, state.picked) === null);
        if (gone) return gone;
      }
      const x = values.get(a), y = values.get(b);
      if (x === null || y === null) return (x === null) - (y === null) || a - b;
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y) || a - b;
    });
    state.order = rows;
    const there = state.picked < 0 ? 0 : rows.filter((i) => point(i, state.picked) !== null).length;
    $("status").textContent = (state.picked < 0 ? rows.length + " photos" : named(state.picked) + " on " + there + " of " +
      rows.length + " photos") + (data.of > count ? ", of " + data.of + " in the split" : "");
    layout(true);
  }

  // ---- sheets of small photos ------------------------------------------------------------------------------------
  const sheets = new Map();
  function sheet(photo, whenLoaded) {
    const number = Math.floor(photo / data.sheets.across ** 2);
    let image = sheets.get(number);
    if (!image) {
      image = new Image();
      image.src = data.sheets.addresses[number];
      sheets.set(number, image);
    }
    if (image.complete && image.naturalWidth) return image;
    image.addEventListener("load", whenLoaded, { once: true });
    return null;
  }

  const place = (photo) => {
    const at = photo % data.sheets.across ** 2;
    return [(at % data.sheets.across) * data.sheets.side, Math.floor(at / data.sheets.across) * data.sheets.side];
  };

  // Draw a square part of a photo: its left upper corner and side in pixels of the small photo.
  function draw(canvas, photo, left, top, side, again) {
    const ratio = window.devicePixelRatio || 1, shown = canvas.clientWidth || parseFloat(canvas.style.width);
    canvas.width = canvas.height = Math.round(shown * ratio);
    const context = canvas.getContext("2d"), image = sheet(photo, again);
    if (!image) return [context, 0];
    const [x, y] = place(photo), whole = data.sheets.side, zoom = canvas.width / side;
    const from = [Math.max(left, 0), Math.max(top, 0)];
    const to = [Math.min(left + side, whole), Math.min(top + side, whole)];
    if (to[0] > from[0] && to[1] > from[1]) {
      context.drawImage(image, x + from[0], y + from[1], to[0] - from[0], to[1] - from[1],
        (from[0] - left) * zoom, (from[1] - top) * zoom, (to[0] - from[0]) * zoom, (to[1] - from[1]) * zoom);
    }
    return [context, zoom];
  }

  // Pixel centres are at integers, so that the middle of the first pixel is half a pixel from the edge of the picture.
  const small = (value) => (value + 0.5) * scale;

  function dot(context, x, y, radius, k) {
    const faint = state.picked >= 0 && state.picked !== k;
    context.globalAlpha = faint ? 0.45 : 1;
    context.beginPath();
    context.arc(x, y, faint ? radius * 0.8 : radius, 0, 2 * Math.PI);
    context.fillStyle = data.colours[k];
    context.fill();
    context.lineWidth = Math.max(1, radius / 3);
    context.strokeStyle = "#fff";
    context.stroke();
    context.globalAlpha = 1;
  }

  function drawWhole(canvas, photo, again) {
    const [context, zoom] = draw(canvas, photo, 0, 0, data.sheets.side, again);
    if (!zoom) return;
    const radius = Math.max(2.5, canvas.width / 48);
    const last = state.picked >= 0 ? [state.picked] : [];
    for (const k of [...Array(run().k).keys()].filter((k) => k !== state.picked).concat(last)) {
      const xy = state.hidden.has(k) ? null : point(photo, k);
      if (xy) dot(context, small(xy[0]) * zoom, small(xy[1]) * zoom, radius, k);
    }
  }

  function drawCrop(canvas, photo, again) {
    const xy = point(photo, state.picked), side = data.sheets.side * state.zoom;
    if (!xy) return drawWhole(canvas, photo, again);
    const [context, zoom] = draw(canvas, photo, small(xy[0]) - side / 2, small(xy[1]) - side / 2, side, again);
    if (!zoom) return;
    context.lineWidth = Math.max(1.5, canvas.width / 60);
    for (const [colour, radius] of [["#fff", canvas.width / 14], [data.colours[state.picked], canvas.width / 18]]) {
      context.strokeStyle = colour;
      context.beginPath();
      context.arc(canvas.width / 2, canvas.height / 2, radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  // ---- the grid: only tiles in view exist ------------------------------------------------------------------------
  const tiles = new Map(); // by place in the order
  function layout(anew) {
    const scroll = $("scroll"), gap = 6, high = state.size + 26;
    const across = Math.max(1, Math.floor((scroll.clientWidth - gap) / (state.size + gap)));
    $("space").style.height = Math.ceil(state.order.length / across) * high + gap + "px";
    if (anew) {
      for (const tile of tiles.values()) tile.remove();
      tiles.clear();
    }
    const first = Math.max(0, Math.floor(scroll.scrollTop / high) - 1) * across;
    const end = Math.min(state.order.length, (Math.ceil((scroll.scrollTop + scroll.clientHeight) / high) + 1) * across);
    for (const [at, tile] of tiles) {
      if (at < first || at >= end) {
        tile.remove();
        tiles.delete(at);
      }
    }
    for (let at = first; at < end; at++) {
      if (tiles.has(at)) continue;
      const tile = tileOf(state.order[at]);
      tile.style.left = gap + (at % across) * (state.size + gap) + "px";
      tile.style.top = gap + Math.floor(at / across) * high + "px";
      $("space").append(tile);
      tiles.set(at, tile);
      paint(tile);
    }
  }

  function tileOf(photo) {
    const tile = document.createElement("button"), canvas = document.createElement("canvas");
    const caption = document.createElement("span");
    tile.className = "tile";
    tile.dataset.photo = photo;
    tile.title = data.photos[photo];
    canvas.style.width = canvas.style.height = state.size + "px";
    caption.style.width = state.size + "px";
    tile.append(canvas, caption);
    return tile;
  }

  function paint(tile) {
    const photo = Number(tile.dataset.photo), again = () => tile.isConnected && paint(tile);
    const gone = state.picked >= 0 && point(photo, state.picked) === null;
    tile.classList.toggle("corrected", state.fixes.has(photo));
    tile.classList.toggle("gone", gone);
    (state.picked >= 0 ? drawCrop : drawWhole)(tile.firstChild, photo, again);
    const value = state.sort === "order" ? null : measures[state.sort][1](photo);
    const told = typeof value === "number" ? +value.toPrecision(3) + measures[state.sort][2] : value;
    tile.lastChild.textContent = [gone ? "absent" : "", told === null ? "" : told, data.photos[photo]]
      .filter((part) => part !== "").join(" · ");
  }

  const repaint = () => tiles.forEach(paint);

  // ---- the list of landmarks -------------------------------------------------------------------------------------
  function listLandmarks() {
    $("landmarks").replaceChildren(...Array.from({ length: run().k }, (_, k) => {
      const row = run().table[k], item = document.createElement("li");
      const pick = Object.assign(document.createElement("button"), { className: "dot", textContent: k });
      pick.style.background = data.colours[k];
      pick.setAttribute("aria-label", "Show landmark " + k + " on every photo");
      pick.addEventListener("click", () => choose(state.picked === k ? -1 : k));
      const name = Object.assign(document.createElement("input"), { value: (state.run === 0 && state.names[k]) || "" });
      name.placeholder = "landmark" + k;
      name.disabled = state.run !== 0;
      name.setAttribute("aria-label", "Name of landmark " + k);
      name.addEventListener("change", () => {
        state.names[k] = name.value.trim();
        keep();
        reorder();
      });
      const toggle = Object.assign(document.createElement("button"), { className: "toggle" });
      toggle.textContent = state.hidden.has(k) ? "show" : "hide";
      toggle.addEventListener("click", () => hide(k));
      const numbers = Object.assign(document.createElement("span"), { className: "numbers" });
      const told = (label, value, digits, unit) => (value === null ? "" : label + " " + value.toFixed(digits) + unit);
      numbers.textContent = [
        told("found on", row.found === null ? null : 100 * row.found, 0, " %"),
        told("stable to", row.stability, 1, " px"),
        told("backward", row.backward, 1, " %"),
      ].filter(Boolean).join(" · ");
      item.append(pick, name, toggle, numbers);
      item.classList.toggle("picked", state.picked === k);
      item.classList.toggle("hidden", state.hidden.has(k));
      return item;
    }));
  }

  function choose(k) {
    state.picked = k;
    for (const part of document.querySelectorAll(".strip-only")) part.hidden = k < 0;
    [...$("landmarks").children].forEach((item, i) => item.classList.toggle("picked", i === k));
    if (k >= 0) $("landmarks").children[k].scrollIntoView({ block: "nearest", inline: "nearest" });
    view("photos");
    $("scroll").scrollTop = 0;
    reorder();
    if ($("photo").open) openPhoto(state.open);
  }

  function hide(k) {
    if (!state.hidden.delete(k)) state.hidden.add(k);
    listLandmarks();
    repaint();
    if ($("photo").open) drawBig();
  }

  // ---- one photo, and its corrections ----------------------------------------------------------------------------
  function openPhoto(photo) {
    state.open = photo;
    if (!$("photo").open) $("photo").showModal();
    $("photo-name").textContent = data.photos[photo];
    const cells = Object.entries(data.columns).map(([name, column]) => [name, column.cells[photo]])
      .filter(([, cell]) => cell !== null && cell !== "").map(([name, cell]) => name + " " + cell);
    const how = state.run === 0 ? "Drag a landmark to correct it. " : "Corrections are those of the first run. ";
    $("photo-hint").textContent = how + (state.picked >= 0 ? "Picked: " + named(state.picked) + ". " : "") + cells.join(", ");
    for (const id of ["absent", "undo"]) $(id).hidden = state.run !== 0;
    $("absent").disabled = state.picked < 0;
    $("absent").textContent = state.picked >= 0 && point(photo, state.picked) === null ? "Mark present" : "Mark absent";
    $("undo").disabled = !state.fixes.has(photo);
    drawBig();
  }

  const drawBig = () => drawWhole($("big"), state.open, drawBig);

  function correct(k, xy) {
    const fixed = state.fixes.get(state.open) || {};
    fixed[k] = xy;
    state.fixes.set(state.open, fixed);
    corrected();
  }

  function corrected() {
    keep();
    const n = state.fixes.size;
    $("save-corrections").disabled = !n;
    $("save-corrections").textContent = n ? "Save corrections of " + n + (n > 1 ? " photos" : " photo") : "Save corrections";
    repaint();
    if ($("photo").open) openPhoto(state.open);
  }

  function inFrame(canvas, event) { // position of the pointer in pixels of the frame
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * data.frame - 0.5,
      ((event.clientY - box.top) / box.height) * data.frame - 0.5];
  }

  function nearest(photo, xy, most) {
    let best = -1, least = most;
    for (let k = 0; k < run().k; k++) {
      const at = state.hidden.has(k) ? null : point(photo, k);
      const distance = at ? Math.hypot(at[0] - xy[0], at[1] - xy[1]) : Infinity;
      if (distance < least) [best, least] = [k, distance];
    }
    return best;
  }

  function toggleAbsent() {
    if (state.picked < 0 || state.run !== 0) return;
    correct(state.picked, point(state.open, state.picked) === null ? [(data.frame - 1) / 2, (data.frame - 1) / 2] : null);
  }

  function step(by) {
    const at = state.order.indexOf(state.open) + by;
    if (at >= 0 && at < state.order.length) openPhoto(state.order[at]);
  }

  let dragged = -1;
  $("big").addEventListener("pointerdown", (event) => {
    const k = nearest(state.open, inFrame($("big"), event), data.frame / 24);
    if (k < 0) return;
    if (k !== state.picked) choose(k);
    if (state.run !== 0) return;
    dragged = k;
    $("big").setPointerCapture(event.pointerId);
  });
  $("big").addEventListener("pointermove", (event) => {
    if (dragged < 0) return;
    const inside = (v) => Math.min(Math.max(v, 0), data.frame - 1);
    const fixed = state.fixes.get(state.open) || {};
    fixed[dragged] = inFrame($("big"), event).map(inside);
    state.fixes.set(state.open, fixed);
    drawBig();
  });
  for (const end of ["pointerup", "pointercancel"]) {
    $("big").addEventListener(end, () => {
      if (dragged >= 0 && state.fixes.has(state.open)) corrected();
      dragged = -1;
    });
  }

  // ---- files that the page saves ---------------------------------------------------------------------------------
  function save(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  function allNames() {
    const first = data.runs[0];
    return Array.from({ length: first.k }, (_, k) => state.names[k] || "landmark" + k);
  }

  function checkedNames() {
    const names = allNames(), twice = names.find((name, i) => names.indexOf(name) < i);
    if (twice === undefined) return names;
    alert("Two landmarks are called " + twice + "; give each its own name.");
    return null;
  }

  function saveNames() {
    const names = checkedNames(), first = data.runs[0];
    if (names) save("names.json", JSON.stringify({ run: first.name, stage: first.stage, names }, null, 2) + "\n", "application/json");
  }

  const cell = (text) => (/[",\r\n]/.test(text) ? '"' + text.replaceAll('"', '""') + '"' : text);

  function saveCorrections() {
    const names = checkedNames();
    if (!names) return;
    const given = names.some((_, k) => state.names[k]);
    const head = names.flatMap((name, k) => (given ? [name + "_x", name + "_y"] : ["x" + k, "y" + k]));
    const before = state.run;
    state.run = 0; // corrections are those of the first run
    const lines = [...state.fixes.keys()].sort((a, b) => a - b).map((photo) => {
      const [scaleX, scaleY, moveX, moveY] = data.maps[photo];
      const xy = names.flatMap((_, k) => {
        const at = point(photo, k);
        return at ? [((at[0] - moveX) / scaleX).toFixed(3), ((at[1] - moveY) / scaleY).toFixed(3)] : ["", ""];
      });
      return [data.photos[photo], ...xy].map(cell).join(",");
    });
    state.run = before;
    save("train.csv", [["file", ...head].map(cell).join(","), ...lines].join("\n") + "\n", "text/csv");
  }

  // ---- numbers ---------------------------------------------------------------------------------------------------
  function element(name, text, attributes = {}) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  }

  function table(head, rows) {
    const made = element("table"), row = (cells, name) => {
      const line = element("tr");
      line.append(...cells.map((text) => element(name, text)));
      return line;
    };
    made.append(row(head, "th"), ...rows.map((cells) => row(cells, "td")));
    return made;
  }

  function chart(title, lines, xName) { // lines: {name: [x, y]}
    const svg = (name, attributes, text) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      if (text !== undefined) made.textContent = text;
      return made;
    };
    const wide = 380, high = 210, left = 52, bottom = 34, inks = ["#2f6fbb", "#d9772b", "#3a9a6a", "#8a5ab5"];
    const xs = Object.values(lines).flatMap((line) => line[0]), ys = Object.values(lines).flatMap((line) => line[1]);
    const range = (values) => {
      const [low, top] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
      return low === top ? [low - 0.5, top + 0.5] : [low, top];
    };
    const [x0, x1] = range(xs), [y0, y1] = range(ys);
    const x = (v) => left + ((v - x0) / (x1 - x0)) * (wide - left - 8);
    const y = (v) => 8 + (1 - (v - y0) / (y1 - y0)) * (high - bottom - 8);
    const root = svg("svg", { width: wide, height: high, role: "img", "aria-label": title });
    for (const share of [0, 0.5, 1]) {
      const [vx, vy] = [x0 + share * (x1 - x0), y0 + share * (y1 - y0)];
      root.append(svg("line", { class: "axis", x1: left, x2: wide - 8, y1: y(vy), y2: y(vy) }),
        svg("text", { x: left - 6, y: y(vy) + 4, "text-anchor": "end" }, +vy.toPrecision(3)),
        svg("text", { x: x(vx), y: high - 18, "text-anchor": share === 0 ? "start" : share === 1 ? "end" : "middle" }, +vx.toPrecision(4)));
    }
    root.append(svg("text", { x: (left + wide) / 2, y: high - 3, "text-anchor": "middle" }, xName));
    Object.values(lines).forEach(([px, py], i) => root.append(svg("polyline", {
      fill: "none", stroke: inks[i % inks.length], "stroke-width": 1.8, points: px.map((v, j) => x(v) + "," + y(py[j])).join(" "),
    })));
    const figure = element("figure"), caption = element("figcaption", title);
    if (Object.keys(lines).length > 1) {
      Object.keys(lines).forEach((name, i) => caption.append(element("span", " ■ " + name, { style: "color:" + inks[i % inks.length] })));
    }
    figure.append(root, caption);
    return figure;
  }

  function fillNumbers() {
    const page = $("numbers"), some = data.runs;
    page.replaceChildren();
    const shown = {
      protocol: "protocol", forward_nme: "forward error, %", backward_nme: "backward error, %", mean_shape_nme: "mean shape, %",
      stability_px: "stability, px at 128", stability_scaled_px: "stability when scaled, px", ced_auc: "area under the CED",
      landmarks: "landmarks", n_train: "images fitted on", n_test: "images measured",
    };
    const told = (value) => (value === null || value === undefined ? "" : typeof value === "number" ? String(+value.toPrecision(4)) : String(value));
    const rows = Object.entries(shown).map(([key, name]) => [name, ...some.map((one) => told(one.numbers[key]))])
      .filter((cells) => cells.slice(1).some(Boolean));
    page.append(element("h2", "Measured on the split " + data.split), table(["", ...some.map((one) => one.name)], rows));
    for (const one of some) {
      if (one.numbers.not_measured) page.append(element("p", "Errors of " + one.name + " are not measured, as " + one.numbers.not_measured + "."));
    }
    const ced = {};
    for (const one of some) {
      for (const [name, line] of Object.entries(one.ced)) ced[some.length > 1 ? one.name + ", " + name : name] = line;
    }
    const charts = element("div", undefined, { class: "charts" });
    if (Object.keys(ced).length) charts.append(chart("Share of images with an error below x", ced, "error, %"));
    page.append(charts);
    for (const one of some) {
      page.append(element("h2", "Landmarks of " + one.name));
      page.append(table(["landmark", "found on, %", "stability, px", "disagreement, px", "backward error, %"],
        one.table.map((row, k) => [one === some[0] ? allNames()[k] : "landmark" + k,
          told(row.found === null ? null : 100 * row.found), told(row.stability), told(row.disagreement), told(row.backward)])));
      const names = Object.keys(one.training);
      if (!names.length) continue;
      page.append(element("h2", "Training of " + one.name));
      const curves = element("div", undefined, { class: "charts" });
      curves.append(...names.map((name) => chart(name, { [name]: one.training[name] }, "step")));
      page.append(curves);
    }
  }

  function fillAbout() {
    $("about").replaceChildren(...data.runs.flatMap((one) => [
      element("h2", one.name + ", stage " + one.stage), element("pre", JSON.stringify(one.about, null, 2)),
    ]), element("p", "Made by uld_jax " + data.version + "."));
  }

  // ---- views, tools and keys -------------------------------------------------------------------------------------
  function view(name) {
    for (const tab of document.querySelectorAll("[role=tab]")) tab.setAttribute("aria-selected", tab.dataset.view === name);
    for (const id of ["photos", "numbers", "about"]) $(id).hidden = id !== name;
    if (name === "numbers") fillNumbers();
    if (name === "about" && !$("about").childElementCount) fillAbout();
    if (name === "photos") layout(false);
  }

  function choosing(number) {
    state.run = number;
    $("run").value = number;
    state.picked = Math.min(state.picked, run().k - 1);
    listLandmarks();
    choose(state.picked);
  }

  $("title").textContent = data.runs.map((one) => one.name).join(" and ") + ": " + data.runs[0].k + " landmarks";
  document.title = $("title").textContent;
  data.runs.forEach((one, i) => $("run").append(element("option", one.name, { value: i })));
  $("run-label").hidden = data.runs.length < 2;
  $("run").addEventListener("change", () => choosing(Number($("run").value)));
  for (const [name, [label, value]] of Object.entries(measures)) {
    if (name !== "error" || data.runs[0].errors) $("sort").append(element("option", label, { value: name }));
  }
  for (const tab of document.querySelectorAll("[role=tab]")) tab.addEventListener("click", () => view(tab.dataset.view));
  $("sort").addEventListener("change", () => { state.sort = $("sort").value; reorder(); });
  $("direction").addEventListener("click", () => {
    state.down = !state.down;
    $("direction").setAttribute("aria-pressed", state.down);
    $("direction").textContent = state.down ? "Descending" : "Ascending";
    reorder();
  });
  $("size").addEventListener("input", () => { state.size = Number($("size").value); layout(true); });
  $("zoom").addEventListener("input", () => { state.zoom = Number($("zoom").value); repaint(); });
  $("filter").addEventListener("input", () => { state.filter = $("filter").value; reorder(); });
  $("all").addEventListener("click", () => choose(-1));
  $("save-names").addEventListener("click", saveNames);
  $("save-corrections").addEventListener("click", saveCorrections);
  $("scroll").addEventListener("scroll", () => requestAnimationFrame(() => layout(false)), { passive: true });
  new ResizeObserver(() => layout(true)).observe($("scroll"));
  $("space").addEventListener("click", (event) => {
    const tile = event.target.closest(".tile");
    if (!tile) return;
    const photo = Number(tile.dataset.photo);
    if (state.picked < 0 && event.target.tagName === "CANVAS" && event.detail) {
      const k = nearest(photo, inFrame(event.target, event), (10 / state.size) * data.frame);
      if (k >= 0) return choose(k);
    }
    openPhoto(photo);
  });
  $("space").addEventListener("pointermove", (event) => {
    if (state.picked >= 0 || event.target.tagName !== "CANVAS") return;
    const tile = event.target.parentElement, photo = Number(tile.dataset.photo);
    const k = nearest(photo, inFrame(event.target, event), (10 / state.size) * data.frame);
    tile.title = k < 0 ? data.photos[photo] : named(k);
  });
  $("previous").addEventListener("click", () => step(-1));
  $("next").addEventListener("click", () => step(1));
  $("close").addEventListener("click", () => $("photo").close());
  $("absent").addEventListener("click", toggleAbsent);
  const undo = () => { if (state.fixes.delete(state.open)) corrected(); };
  $("undo").addEventListener("click", undo);

  document.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = (d) => choose(((state.picked < 0 ? (d > 0 ? -1 : 0) : state.picked) + d + run().k) % run().k);
    const open = $("photo").open;
    const keys = {
      ArrowLeft: () => (open ? step(-1) : by(-1)),
      ArrowRight: () => (open ? step(1) : by(1)),
      h: () => state.picked >= 0 && hide(state.picked),
      n: () => !open && state.picked >= 0 && $("landmarks").children[state.picked].querySelector("input").focus(),
      r: () => data.runs.length > 1 && choosing(1 - state.run),
      x: () => open && toggleAbsent(),
      u: () => open && undo(),
      Escape: () => !open && choose(-1),
    };
    if (keys[event.key]) {
      if (event.key !== "Escape" || !open) event.preventDefault();
      keys[event.key]();
    }
  });

  listLandmarks();
  choose(-1);
  corrected();
})();
