// X/Y grids: two parameters, their values, and the labelled result.

import { useEffect, useState } from 'preact/hooks';
import { asProblem } from '../server/api';
import {
  begun,
  labelOf,
  offeredOn,
  pairProblem,
  turned,
  valuesOf,
  valuesProblem,
  type Axes,
  type Axis,
  type Name,
  type Parameter,
  type Written,
} from '../drafting/axes';
import { check, draft, usedLoras, whole, type Whole } from '../drafting/draft';
import { explain } from '../server/explain';
import { axesOf, estimateGrid, isSaid, loadGrid, MAX_CELLS, noteNew, startGrid, type Grid } from '../drafting/grids';
import { duration, moment, plural, t, usd } from '../i18n';
import { AxisField } from '../parts/grid/axisField';
import { GridResult } from '../parts/grid/result';
import { SettingsLine } from '../parts/composer/settingsLine';
import { Button, Empty, Loading } from '../parts/ui';
import { gridForm, grids, listGrids } from '../state/batchList';
import { go } from '../state/route';
import { model, reached, tellProblem } from '../state/store';
import type { Model } from '../server/types';

export function GridView({ id }: { id: string | undefined }) {
  useEffect(() => void listGrids(), [id, reached.value]);
  const earlier = grids.value?.filter((one) => one.batch_id !== id) ?? [];
  const [now, by] = [whole.value, model.value];
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
      {id ? <Kept key={id} id={id} /> : now && by ? <Form of={now} by={by} /> : <Loading />}
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
  return grid ? <GridResult grid={grid} /> : <Loading />;
}

/** What stands in the form; a parameter that is not offered any more gives way to the first one. */
function writtenAxes(of: Whole, by: Model): Axes {
  const used = chosenLoras();
  const first = used[0];
  const kept = gridForm.value ?? {
    x: begun(first ? `lora:${first.id}` : 'cfg', of, by, used),
    y: begun('seed', of, by, used),
  };
  const settled = (name: Name, otherwise: Parameter): Written =>
    offeredOn(name, kept, used, by).includes(kept[name].parameter)
      ? kept[name]
      : begun(otherwise, of, by, used);
  return { x: settled('x', 'cfg'), y: settled('y', 'seed') };
}

/** The avatar's own is in every picture: it is no value to choose among. */
const chosenLoras = () => usedLoras.value.filter((one) => !one.isAvatars).map(({ lora }) => lora);

/** What was refused: by an axis, or as a whole. */
type Refusal = { axis: Name | null; text: string };

function Form({ of, by }: { of: Whole; by: Model }) {
  const [isBusy, setBusy] = useState(false);
  const [refusal, setRefusal] = useState<Refusal | null>(null);
  const written = writtenAxes(of, by);
  const axisOf = ({ parameter, ...rest }: Written): Axis => ({
    parameter,
    values: valuesOf({ parameter, ...rest }),
  });
  const axes = { x: axisOf(written.x), y: axisOf(written.y) };
  const cells = axes.x.values.length * axes.y.values.length;
  // The prompt is written on the page of the form: without it the button says so when pressed.
  const { prompt: prompted, ...wrong } = check(of, by);
  const noPrompt = isSaid(axes) ? undefined : prompted;
  const problemOf = (name: Name) =>
    valuesProblem(axes[name].parameter, axes[name].values, by) ??
    pairProblem(name, axes, of.prompt);
  const problems = { x: problemOf('x'), y: problemOf('y') };
  const form = Object.values(wrong)[0] ?? null;
  const tooMany = cells > MAX_CELLS ? t('grid.tooMany', { max: MAX_CELLS }) : null;
  const canStart = !problems.x && !problems.y && !form && !tooMany && !isBusy && reached.value;
  const all = canStart ? estimateGrid(of, axes.x, axes.y) : null;
  const set = (name: Name, next: Written) => {
    setRefusal(null);
    gridForm.value = { ...written, [name]: next };
  };
  const start = async () => {
    setRefusal(noPrompt ? { axis: null, text: noPrompt } : null);
    if (noPrompt) return;
    setBusy(true);
    try {
      const id = await startGrid(draft.value, axes.x, axes.y);
      const grid = await loadGrid(id);
      if (grid) noteNew(grid);
      go(`grid/${id}`);
    } catch (error) {
      const problem = asProblem(error);
      // A lost connection is told by the banner as long as it lasts, not by a text that stays.
      if (problem.status === 0) return;
      const named = /^grid\.([xy])\b/.exec(problem.field ?? '')?.[1] as Name | undefined;
      setRefusal({ axis: named ?? null, text: explain(problem) });
    } finally {
      setBusy(false);
    }
  };
  const axis = (name: Name) => (
    <AxisField
      name={name}
      written={written[name]}
      offered={offeredOn(name, written, chosenLoras(), by)}
      of={of}
      model={by}
      // Nothing is found fault with before somebody wrote.
      problem={
        refusal?.axis === name
          ? refusal.text
          : axes[name].values.length || written[name].touched
            ? problems[name]
            : null
      }
      onTurn={(parameter) => set(name, turned(written[name], parameter, of, by, chosenLoras()))}
      onChange={(changes) => set(name, { ...written[name], ...changes })}
    />
  );
  const whole = form ?? tooMany ?? (refusal && !refusal.axis ? refusal.text : null);
  return (
    <form
      class="panel"
      noValidate
      onSubmit={(e) => {
        e.preventDefault();
        if (canStart) void start();
      }}
    >
      <SettingsLine of={of} axes={[axes.x, axes.y]} />
      <div class="axes">
        {axis('x')}
        {axis('y')}
      </div>
      {whole && (
        <p class="field-error" role="alert">
          {whole}
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
