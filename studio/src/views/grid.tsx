// X/Y grids: two parameters, their values, and the labelled result.

import { useEffect, useState } from 'preact/hooks';
import { api, asProblem } from '../server/api';
import { check, draft, usedLoras, whole } from '../drafting/draft';
import { explain } from '../server/explain';
import { save } from '../device/files';
import { drawGrid } from '../drafting/gridPicture';
import {
  axesOf,
  axisOf,
  estimateGrid,
  grids,
  labelOf,
  listGrids,
  loadGrid,
  MAX_CELLS,
  noteNew,
  parametersOf,
  readValues,
  startGrid,
  valuesProblem,
  type Grid,
  type Parameter,
} from '../drafting/grids';
import { duration, listed, moment, number, plain, plural, t, usd } from '../i18n';
import { Thumb } from '../parts/pictures/picture';
import { SettingsLine } from '../parts/composer/settingsLine';
import { Button, Empty, Field, Loading } from '../parts/ui';
import { go } from '../state/route';
import { contentOf, keep, model, reached, tellProblem } from '../state/store';
import { isFinal } from '../server/types';

export function GridView({ id }: { id: string | undefined }) {
  useEffect(() => void listGrids(), [id, reached.value]);
  const earlier = grids.value?.filter((one) => one.batch_id !== id) ?? [];
  return (
    <div class="page grid-page">
      <header class="page-head">
        <h1>{t('nav.grid')}</h1>
        {id && (
          <a class="button" href="#/grid">
            {t('grid.new')}
          </a>
        )}
      </header>
      {id ? <Kept key={id} id={id} /> : <Form />}
      {earlier.length > 0 && (
        <section class="stack">
          <h2>{t('grid.earlier')}</h2>
          <ul class="choices">
            {earlier.map((one) => (
              <li key={one.batch_id}>
                <a href={`#/grid/${one.batch_id}`}>
                  <strong>{axesOf(one)?.map(labelOf).join(' × ')}</strong>
                  <span class="muted small">
                    {one.prompts[0]?.slice(0, 80)} · {moment(one.created_at)}
                  </span>
                </a>
              </li>
            ))}
          </ul>
        </section>
      )}
    </div>
  );
}

/** A grid of the backend's, by its id. */
function Kept({ id }: { id: string }) {
  const [grid, setGrid] = useState<Grid | null>(null);
  const [isGone, setGone] = useState(false);
  useEffect(() => {
    if (grid) return;
    loadGrid(id).then(
      (found) => (found ? setGrid(found) : setGone(true)),
      (error) => (asProblem(error).status === 404 ? setGone(true) : tellProblem(error)),
    );
    // Also when the server is there again.
  }, [id, reached.value]);
  if (isGone) return <Empty icon="grid" title={t('grid.gone')} />;
  return grid ? <Result grid={grid} /> : <Loading />;
}

function Form() {
  const now = whole.value;
  const by = model.value;
  const loras = usedLoras.value.map(({ lora }) => lora);
  const offered = parametersOf(loras);
  const [x, setX] = useState<Parameter>(loras[0] ? `lora:${loras[0].id}` : 'cfg');
  const [y, setY] = useState<Parameter>('seed');
  const [xText, setXText] = useState(() => (loras[0] ? [0, 0.5, 1] : [3, 5.5, 8]).map(plain).join('; '));
  const [yText, setYText] = useState('1; 2; 3');
  const [isBusy, setBusy] = useState(false);
  const [error, setError] = useState<string | null>(null);
  if (!now || !by) return <Loading />;
  const axes = { x: readValues(xText), y: readValues(yText) };
  const cells = axes.x.length * axes.y.length;
  // The prompt is written on the page of the form: without it the button says so when pressed.
  const { prompt: noPrompt, ...wrong } = check(now, by);
  const problems = {
    x: valuesProblem(x, axes.x, by),
    y: x === y ? t('grid.same') : valuesProblem(y, axes.y, by),
  };
  const form = Object.values(wrong)[0] ?? null;
  const tooMany = cells > MAX_CELLS ? t('grid.tooMany', { max: MAX_CELLS }) : null;
  const canStart = !problems.x && !problems.y && !form && !tooMany && !isBusy;
  const all = canStart ? estimateGrid(now, axisOf(x, axes.x), axisOf(y, axes.y)) : null;
  const start = async () => {
    setError(noPrompt ?? null);
    if (noPrompt) return;
    setBusy(true);
    try {
      const id = await startGrid(draft.value, axisOf(x, axes.x), axisOf(y, axes.y));
      const grid = await loadGrid(id);
      if (grid) noteNew(grid);
      go(`grid/${id}`);
    } catch (problem) {
      setError(explain(asProblem(problem)));
    } finally {
      setBusy(false);
    }
  };
  const axis = (
    name: 'x' | 'y',
    parameter: Parameter,
    setParameter: (chosen: Parameter) => void,
    text: string,
    setText: (text: string) => void,
  ) => (
    <fieldset class="axis">
      <legend class="unseen">{t(`grid.${name}`)}</legend>
      <Field label={t(`grid.${name}`)}>
        {(attributes) => (
          <select
            {...attributes}
            value={parameter}
            onChange={(e) => setParameter(e.currentTarget.value as Parameter)}
          >
            {offered.map((choice) => (
              <option key={choice.parameter} value={choice.parameter}>
                {choice.label}
              </option>
            ))}
          </select>
        )}
      </Field>
      <Field
        label={t('grid.values')}
        error={problems[name]}
        hint={`${plural('grid.read', axes[name].length)}: ${listed(axes[name].map((one) => number(one, 4)))}. ${t('grid.valuesHint')}`}
      >
        {(attributes) => (
          <input
            {...attributes}
            type="text"
            inputMode="text"
            value={text}
            onInput={(e) => setText(e.currentTarget.value)}
          />
        )}
      </Field>
    </fieldset>
  );
  return (
    <form
      class="panel"
      noValidate
      onSubmit={(e) => {
        e.preventDefault();
        if (canStart) void start();
      }}
    >
      <SettingsLine of={now} />
      <div class="axes">
        {axis('x', x, setX, xText, setXText)}
        {axis('y', y, setY, yText, setYText)}
      </div>
      {(form ?? tooMany ?? error) && (
        <p class="field-error" role="alert">
          {form ?? tooMany ?? error}
        </p>
      )}
      <footer class="row between">
        <p class="expected num">
          {plural('count.pictures', cells)}
          {all && ` · ≈ ${duration(all.seconds)}`}
          {all && ` · ${all.usd === null ? t('cost.none') : `≈ ${usd(all.usd)}`}`}
        </p>
        <Button type="submit" kind="accent" icon="grid" disabled={!canStart}>
          {t('grid.start')}
        </Button>
      </footer>
    </form>
  );
}

function Result({ grid }: { grid: Grid }) {
  const [isBusy, setBusy] = useState(false);
  const ids = grid.cells.flat().filter((id) => id !== null);
  const done = ids.filter((id) => contentOf(id).value?.images.length).length;
  const open = ids.filter((id) => {
    const content = contentOf(id).value;
    return content !== null && !isFinal(content.status);
  });
  const cells = grid.x.values.length * grid.y.values.length;
  const stop = async () => {
    try {
      await api.cancelBatch(grid.id);
      for (const id of open) api.content(id).then(keep, () => {});
    } catch (error) {
      tellProblem(error);
    }
  };
  const repeat = async () => {
    try {
      go(`grid/${(await api.repeatBatch(grid.id)).batch_id}`);
    } catch (error) {
      tellProblem(error);
    }
  };
  const download = async () => {
    setBusy(true);
    try {
      save(await drawGrid(grid), `grid-${grid.id}.png`);
    } catch (error) {
      tellProblem(error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="stack">
      <div class="row between">
        <p class="prompt-text">{grid.prompt}</p>
        <div class="row">
          <span class="muted num" role="status">
            {t('grid.done', { done: number(done), all: number(cells) })}
          </span>
          {open.length > 0 && (
            <Button icon="close" onClick={() => void stop()}>
              {t('grid.stop')}
            </Button>
          )}
          <Button icon="download" disabled={!done || isBusy} onClick={() => void download()}>
            {t('grid.download')}
          </Button>
          {open.length === 0 && (
            <Button icon="again" onClick={() => void repeat()}>
              {t('batch.repeat')}
            </Button>
          )}
        </div>
      </div>
      <div class="xy-scroll" tabIndex={0} role="region" aria-label={t('nav.grid')}>
        <table class="xy">
          <thead>
            <tr>
              <td>
                <span class="label">{labelOf(grid.y)} ↓</span>
              </td>
              <td colSpan={grid.x.values.length}>
                <span class="label">{labelOf(grid.x)} →</span>
              </td>
            </tr>
            <tr>
              <td />
              {grid.x.values.map((value) => (
                <th scope="col" key={value}>
                  {number(value, 4)}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {grid.y.values.map((value, row) => (
              <tr key={value}>
                <th scope="row">{number(value, 4)}</th>
                {grid.x.values.map((other, column) => {
                  const id = grid.cells[row]?.[column];
                  return <td key={other}>{id ? <Thumb id={id} /> : null}</td>;
                })}
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </section>
  );
}
